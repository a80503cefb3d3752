package edge

import edge.privacy.Encode
import edge.protocol.BlobRef
import edge.protocol.DevicePolicy
import edge.protocol.Policy
import edge.protocol.State
import edge.runtime.BlobCache
import edge.runtime.BrokerUrl
import edge.runtime.Bundle
import edge.runtime.DeviceAgent
import edge.runtime.DeviceStore
import edge.runtime.Driver
import edge.runtime.Learner
import edge.runtime.MqttTransport
import edge.runtime.Tls
import edge.runtime.TrainingJob
import edge.runtime.Transport
import edge.secagg.Suite
import java.io.File
import java.security.SecureRandom
import java.util.concurrent.CountDownLatch

/**
 * A device of the Python tests, in a JVM: everything is real but the learner, whose update stands in a file.
 *
 *     java edge.TestDeviceKt HOME BROKER POPULATION [HOLD]
 *
 * HOME has `identity/` and `update.f32`. Before its first frame of kind HOLD it says so, and waits to be killed. Its
 * signatures have fresh nonces, as those of a phone's hardware. It says
 * what it masks, so that a test can compare the sum, and ends when the finished task's model is installed.
 */
fun main(arguments: Array<String>) {
    val (home, broker, population) = arguments
    val folder = File(home)
    val now = { System.currentTimeMillis() / 1e3 }
    val identity = hardwareIdentity(File(folder, "identity"), now())
    val update = Bytes(File(folder, "update.f32").readBytes())
    val store = DeviceStore(File(folder, "device"))
    val random = SecureRandom()
    lateinit var agent: DeviceAgent
    agent = DeviceAgent(
        identity = identity,
        learners = mapOf(population to KnownLearner(update)),
        store = store,
        blobs = BlobCache(File(folder, "blobs")),
        policy = DevicePolicy(minReports = 2, epsilonAtMost = Double.POSITIVE_INFINITY),
        randomBytes = { count -> ByteArray(count).also(random::nextBytes) },
        resendS = 5.0,
        onEvent = { event -> if (event is Uploaded) say("masks ${plain(agent, store)}") else say("event $event") },
        log = { say("log $it") },
    )
    val url = BrokerUrl.parse(broker)
    val mqtt = MqttTransport(url, identity.id, if (url.tls) ({ Tls.socketFactory(identity) }) else null, log = { say("log $it") })
    val transport = HeldTransport(mqtt, arguments.getOrNull(3)?.toInt())
    Driver(agent, transport, now).run { agent.isComplete() }
    say("done ${agent.installedVersion(population)}")
}

private fun hardwareIdentity(folder: File, now: Double): Identity {
    val key = Signing.privateKeyFromPem(File(folder, "identity.key").readText())
    val (certificate, registrar) = listOf("identity.crt", "registrar.crt").map { File(folder, it).readText() }
    return Identity.of(certificate, registrar, key, now) { message ->
        val der = java.security.Signature.getInstance("SHA256withECDSA").run {
            initSign(key)
            update(message)
            sign()
        }
        val numbers = org.bouncycastle.asn1.ASN1Sequence.getInstance(der)
        (0..1).map { org.bouncycastle.asn1.ASN1Integer.getInstance(numbers.getObjectAt(it)).positiveValue }
            .map { org.bouncycastle.util.BigIntegers.asUnsignedByteArray(32, it) }.reduce(ByteArray::plus)
    }
}

private fun say(what: String) = println(what).also { System.out.flush() }

/** Context, index and the integers that are masked: recomputed from the journal's entropy. */
private fun plain(agent: DeviceAgent, store: DeviceStore): String {
    val shared = (agent.state as State.Reported).holding.shared
    val update = store.journal().first { it.kind == "trained" }.payload
    val values = FloatArray(update.size / 4)
    java.nio.ByteBuffer.wrap(update).order(java.nio.ByteOrder.LITTLE_ENDIAN).asFloatBuffer().get(values)
    val entropy = Suite.derive(store.journal().last().entropy, "encode")
    val encoded = Encode.encode(values, Policy.encodingOf(shared.base.plan), shared.base.context, entropy)
    return "${shared.base.context.hex()} ${shared.roster.index} ${encoded.joinToString(",") { it.toUInt().toString() }}"
}

/** Trains at once to a known update. */
private class KnownLearner(private val update: Bytes) : Learner {
    override val runtimeVersion = "none"
    override val exampleCount = 10

    override fun parts(head: ByteArray): List<BlobRef> = emptyList()

    override fun check(bundle: Bundle, checkpoint: ByteArray): Long = checkpoint.size / 4L

    override fun train(job: TrainingJob, progress: (Int, Int) -> Unit, shouldStop: () -> Boolean) = edge.runtime.Update(update)

    override fun install(version: Long, bundle: Bundle, checkpoint: ByteArray) = Unit
}

/** Stops for good at the first control frame of a kind. */
private class HeldTransport(private val real: Transport, private val hold: Int?) : Transport by real {
    override fun publish(topic: String, payload: ByteArray, expiryS: Int): Boolean {
        if (hold != null && topic.endsWith("/up/ctl") && payload[3].toInt() == hold) {
            say("holding $hold")
            CountDownLatch(1).await()
        }
        return real.publish(topic, payload, expiryS)
    }
}
