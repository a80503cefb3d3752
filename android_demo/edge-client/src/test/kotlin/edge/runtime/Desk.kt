package edge.runtime

import edge.Authority
import edge.Bytes
import edge.DeviceEvent
import edge.privacy.Sampling
import edge.protocol.Announcement
import edge.protocol.BlobRef
import edge.protocol.CheckIn
import edge.protocol.Chunks
import edge.protocol.Codec
import edge.protocol.Cohort
import edge.protocol.DevicePolicy
import edge.protocol.Message
import edge.protocol.NO_ROUND
import edge.protocol.Plan
import edge.protocol.Pull
import edge.protocol.TaskState
import edge.protocol.ToCoordinator
import edge.secagg.Suite
import java.io.Closeable
import java.io.File

/** One agent and what it is told, without a network: messages in, messages out. */
internal class Desk(
    private val folder: File,
    populations: List<String> = listOf("first", "second"),
    private val budget: Budget = Budget(),
    consent: (DeviceStore) -> Consent? = { null },
    private val freeMemory: () -> Long? = { null },
    var now: Double = START,
    private val authority: Authority = Authority(START),
) : Closeable {
    val coordinator = authority.member("coordinator", "coordinator")
    private val device = authority.member("device-0", "device")
    val events = ArrayList<DeviceEvent>()
    val learners = populations.associateWith { FakeLearner() }
    val store = DeviceStore(folder)
    val agent = DeviceAgent(
        identity = authority.identity(device),
        learners = learners,
        store = store,
        blobs = BlobCache(File(folder, "blobs")),
        policy = DevicePolicy(minReports = 3, epsilonAtMost = Double.POSITIVE_INFINITY),
        randomBytes = { ByteArray(it) },
        consent = consent(store),
        budget = budget,
        freeMemory = freeMemory,
        onEvent = { events.add(it) },
    )

    /** Identities of the same registrar. */
    fun rival(id: String = "rival", days: Int = 90): Authority.Member = authority.member(id, "coordinator", days)

    fun renewed() = authority.identity(authority.member("device-0", "device"))

    fun stranger() = authority.identity(authority.member("device-1", "device"))

    fun start(): List<ToCoordinator> = read(agent.start(now))

    fun wait(seconds: Double): List<ToCoordinator> {
        now += seconds
        return read(agent.tick(now))
    }

    fun clockSetBack(seconds: Double): List<ToCoordinator> {
        now -= seconds
        return read(agent.clockSetBack(now))
    }

    fun announce(
        population: String,
        task: String,
        round: Int,
        state: TaskState = TaskState.OPEN,
        version: Long = 1,
        signer: Authority.Member = coordinator,
    ): List<ToCoordinator> {
        val rid = if (state == TaskState.OPEN) rid(round) else NO_ROUND
        val message = Announcement(
            round.toLong(), population, task, state, rid, round.toLong(), 10, WINDOW_S, version, BUNDLE.first, CHECKPOINT.first,
        )
        val frame = Codec.writeFrame(message, Codec.BROADCAST, signer.certificate, signer::sign)
        return read(agent.receive("fl/v1/pub/task/$population", frame, now))
    }

    fun plan(task: String, round: Int): Plan = Cohort().plan.copy(
        rid = rid(round), task = task, roundNumber = round.toLong(), bundle = BUNDLE.first, checkpoint = CHECKPOINT.first,
    )

    fun tell(message: Message, signer: Authority.Member = coordinator): List<ToCoordinator> {
        val frame = Codec.writeFrame(message, "device-0", sign = signer::sign)
        return read(agent.receive("fl/v1/d/device-0/dn/ctl", frame, now))
    }

    /** Answers every pull among these messages, and those that come of it; the rest of what was said. */
    fun serve(said: List<ToCoordinator>): List<ToCoordinator> {
        val rest = ArrayList<ToCoordinator>()
        val open = ArrayDeque(said)
        while (open.isNotEmpty()) {
            val message = open.removeFirst()
            if (message !is Pull) {
                rest.add(message)
                continue
            }
            val content = listOf(BUNDLE, CHECKPOINT).first { it.first.sha256 == message.sha256 }.second
            for (frame in Chunks.frames(message.sha256, content, message)) {
                open.addAll(read(agent.receive("fl/v1/d/device-0/dn/b", frame, now)))
            }
        }
        return rest
    }

    private fun read(outgoing: List<Outgoing>): List<ToCoordinator> =
        outgoing.filter { it.topic.endsWith("/up/ctl") }.map { Codec.parseForCoordinator(Codec.readFrame(it.payload)) }

    override fun close() = store.close()

    companion object {
        const val START = 1_800_000_000.0
        const val WINDOW_S = 30.0
        val BUNDLE = blob("a bundle".toByteArray())
        val CHECKPOINT = blob(ByteArray(16))

        fun rid(round: Int) = Bytes(ByteArray(16) { round.toByte() })

        fun tasks(said: List<ToCoordinator>): List<String> = said.filterIsInstance<CheckIn>().map { it.task }

        private fun blob(data: ByteArray) = BlobRef(Bytes(Suite.digest(data)), data.size.toLong()) to data
    }
}

/** Checks and installs whatever comes. */
internal class FakeLearner(override var exampleCount: Int = 10, var memory: Long = 0, var sampling: Sampling? = null) : Learner {
    val installed = ArrayList<Long>()
    var beforeStep: (Int) -> Unit = {}
    var checks = 0
    override val runtimeVersion = "none"

    override fun parts(head: ByteArray): List<BlobRef> = emptyList()

    override fun check(bundle: Bundle, checkpoint: ByteArray): Long = (checkpoint.size / 4L).also { checks++ }

    override fun memoryBytes(head: ByteArray, plan: Plan): Long = memory

    override fun sampling(bundle: Bundle, plan: Plan): Sampling? = sampling

    override fun train(job: TrainingJob, progress: (Int, Int) -> Unit, shouldStop: () -> Boolean): Update? {
        for (step in 0 until STEPS) {
            progress(step, STEPS)
            beforeStep(step)
            if (shouldStop()) return null
        }
        return Update(Bytes(ByteArray(16)), sampling)
    }

    override fun install(version: Long, bundle: Bundle, checkpoint: ByteArray) {
        installed.add(version)
    }

    companion object {
        const val STEPS = 1_000
    }
}
