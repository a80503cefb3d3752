package edge

import edge.training.Artifact
import edge.training.Examples
import edge.training.Npz
import edge.training.OnnxTrainer
import edge.training.OpenGraph
import edge.training.Tensor
import edge.training.TrainingPlan
import java.io.File
import java.lang.management.ManagementFactory

/**
 * What training costs a JVM, for `benchmarks/java_step.py`, which asks for so many steps a line:
 *
 *     java edge.StepTimesKt BUNDLE SIGNER EXAMPLES BATCH
 *
 * The first line said is the process's growth from an open training graph to the peak of 20 steps, in bytes. Each line read
 * then is a number of steps to train; its answer is the CPU seconds of each, on the thread that trains. Linux only.
 */
fun main(arguments: Array<String>) {
    val (bundle, signer, examples, batch) = arguments
    val artifact = Artifact.parseFile(File(bundle).readBytes(), Signing.publicKeyFromPem(File(signer).readText()))
    val rows = InMemory(Npz.read(File(examples)))
    val checkpoint = artifact.checkpoint()
    val seed = ByteArray(32)
    fun plan(steps: Long) = TrainingPlan(steps, batch.toInt(), 1e-4f, steps, 0f)
    OpenGraph(artifact, "train").close()
    System.gc()
    val before = status("VmRSS")
    File("/proc/self/clear_refs").writeText("5")
    OnnxTrainer(artifact).use { trainer ->
        trainer.train(checkpoint, rows, plan(20), seed)
        println(status("VmHWM") - before)
        val clock = ManagementFactory.getThreadMXBean()
        generateSequence(::readlnOrNull).map(String::toLong).forEach { steps ->
            val begin = clock.currentThreadCpuTime
            trainer.train(checkpoint, rows, plan(steps), seed)
            println((clock.currentThreadCpuTime - begin) / 1e9 / steps)
        }
    }
}

/** Examples by field, as an app might hold them. */
internal class InMemory(private val rows: Map<String, Tensor>) : Examples {
    override val count = rows.values.first().shape[0]

    override fun take(places: List<Int>) = rows.mapValues { (_, all) ->
        val size = all.data.size / count
        val data = ByteArray(places.size * size)
        places.forEachIndexed { at, place -> all.data.copyInto(data, at * size, place * size, (place + 1) * size) }
        Tensor(all.dtype, listOf(places.size) + all.shape.drop(1), data)
    }
}

private fun status(name: String): Long =
    File("/proc/self/status").readLines().single { it.startsWith("$name:") }.filter(Char::isDigit).toLong() * 1024
