package edge

import edge.protocol.DevicePolicy
import edge.training.Field
import edge.training.Npz
import edge.training.Tensor
import java.io.File
import kotlin.system.exitProcess

private const val USAGE = """usage: DeviceMain --home DIR --broker URL --population NAME[,NAME] [options]
  --enrol URL        get an identity from this registrar first, with the token in EDGE_ENROL_TOKEN and the
                     registrar's certificate in DIR/registrar.crt; with another token than before, another identity
  --analytics        answer signed questions about the examples too
  --examples FILE    .npz with inputs and y, to fill an empty example store with
  --min-reports N    fewest devices in a sum (20)
  --epsilon E        most this device spends on all tasks together, or 'any' to allow no noise (10)
  --consent PURPOSE  the owner agrees to training for this purpose
  --until-done       end once the finished task's model is installed"""

/** A device on this machine's JVM, as `edge device run` is one in Python: for servers, gateways and tests. */
public fun main(arguments: Array<String>) {
    try {
        run(Options(arguments))
    } catch (error: EdgeError) {
        System.err.println("error: ${error.message}")
        if (error.hint.isNotEmpty()) System.err.println("  hint: ${error.hint}")
        exitProcess(1)
    }
}

private class Options(arguments: Array<String>) {
    private val given = HashMap<String, String>()
    val untilDone: Boolean

    init {
        val rest = ArrayDeque(arguments.toList())
        while (rest.isNotEmpty()) {
            val name = rest.removeFirst()
            given[name] = if (name in FLAGS) "" else rest.removeFirstOrNull() ?: throw unusable("$name lacks its value")
        }
        untilDone = "--until-done" in given
        val known = setOf(
            "--analytics", "--home", "--broker", "--population", "--enrol", "--examples", "--min-reports", "--epsilon", "--consent", "--until-done",
        )
        (given.keys - known).firstOrNull()?.let { throw unusable("there is no option $it") }
    }

    val analytics: Boolean get() = "--analytics" in given

    fun needed(name: String): String = given[name] ?: throw unusable("$name is missing")

    fun optional(name: String): String? = given[name]

    fun unusable(why: String) = ConfigError(why, USAGE)

    private companion object {
        val FLAGS = setOf("--analytics", "--until-done")
    }
}

private fun run(options: Options) {
    val minReports = (options.optional("--min-reports") ?: "20").toIntOrNull()
    val epsilon = (options.optional("--epsilon") ?: "10").let { if (it == "any") Double.POSITIVE_INFINITY else it.toDoubleOrNull() }
    if (minReports == null || epsilon == null) throw options.unusable("--min-reports and --epsilon are numbers")
    val populations = options.needed("--population").split(',')
    val home = File(options.needed("--home"))
    val edge = EdgeClient(home) {
        coordinator(options.needed("--broker"), System.getenv("EDGE_BROKER_PASSWORD"))
        policy(DevicePolicy(minReports = minReports, epsilonAtMost = epsilon))
        options.optional("--enrol")?.let { url ->
            val token = System.getenv("EDGE_ENROL_TOKEN").orEmpty()
            if (token.isNotEmpty()) enrol(url, token)
            else if (!File(home, "identity/identity.crt").exists()) throw options.unusable("EDGE_ENROL_TOKEN is not set")
        }
        log = ::say
    }
    edge.use {
        val rows = options.optional("--examples")?.let { Npz.read(File(it)) }
        val examples = rows?.let { edge.examples("examples", schemaOf(it)) }
        if (rows != null && examples != null && examples.count == 0) {
            val count = rows.values.minOf { it.shape[0] }
            for (row in 0 until count) examples.add(*rows.map { (name, all) -> name to rowOf(all, row) }.toTypedArray())
            say("$count examples")
        }
        populations.forEach { edge.join(it, examples, options.analytics) }
        options.optional("--consent")?.let { if (edge.consent.newest == null) edge.consent.grant(it, "command line") }
        Runtime.getRuntime().addShutdownHook(Thread { edge.stop() })
        edge.run { options.untilDone && edge.isComplete() }
        for (population in populations) say("model ${edge.model(population).installed?.version ?: 0}")
        for (one in edge.privacy.receipts()) say("round ${one.roundNumber}: ${one.sentBytes} bytes, epsilon ${one.epsilon}")
    }
    if (options.untilDone) exitProcess(0)
}

private fun schemaOf(rows: Map<String, Tensor>) = rows.mapValues { (_, all) -> Field(all.dtype, all.shape.drop(1)) }

private fun rowOf(all: Tensor, row: Int): Tensor {
    val size = all.data.size / all.shape[0]
    return Tensor(all.dtype, all.shape.drop(1), all.data.copyOfRange(row * size, (row + 1) * size))
}

private fun say(what: String) {
    println(what)
    System.out.flush()
}
