package edge

import edge.inference.InstalledModel
import edge.inference.InstalledModels
import edge.protocol.DevicePolicy
import edge.runtime.BlobCache
import edge.runtime.BrokerUrl
import edge.runtime.Consent
import edge.runtime.DeviceAgent
import edge.runtime.DeviceStore
import edge.runtime.Driver
import edge.runtime.Enrolment
import edge.runtime.HomeLock
import edge.runtime.MqttTransport
import edge.runtime.Participation
import edge.runtime.Tls
import edge.runtime.Transport
import edge.training.ExampleStore
import edge.training.FileKey
import edge.training.KeyPlace
import edge.training.LocalLearner
import edge.training.Schema
import edge.training.Tensor
import java.io.Closeable
import java.io.File
import java.io.IOException
import java.security.SecureRandom
import java.security.interfaces.ECPublicKey
import java.util.concurrent.CountDownLatch
import java.util.concurrent.atomic.AtomicReference
import kotlin.concurrent.thread
import kotlin.coroutines.resume
import kotlin.coroutines.resumeWithException
import kotlinx.coroutines.channels.BufferOverflow
import kotlinx.coroutines.flow.MutableSharedFlow
import kotlinx.coroutines.flow.SharedFlow
import kotlinx.coroutines.flow.asSharedFlow
import kotlinx.coroutines.suspendCancellableCoroutine

/** A device's folder and floors, as an app sets them. */
public class EdgeClientSettings internal constructor() {
    internal var broker: BrokerUrl? = null
    internal var password: String? = null
    internal var floors: DevicePolicy = DevicePolicy()

    /** This device's identity; read from `identity/` in the folder where none is given. */
    public var identity: Identity? = null

    /** The key that models must be signed with; read from `signer.pub` in the folder where none is given. */
    public var signer: ECPublicKey? = null

    /** Where a store's key is kept; beside its file where nothing is said. */
    public var keyPlace: (File) -> KeyPlace = { FileKey(it) }

    /** Seconds since the epoch. */
    public var now: () -> Double = { System.currentTimeMillis() / 1e3 }

    /** Told what a developer may want to know. */
    public var log: (String) -> Unit = {}

    /** After how many seconds a message that brought no answer is repeated, up to twice as long by jitter. */
    public var resendS: Double = 10.0

    /** The broker, `mqtts://host[:port]` or `mqtt://[user@]host[:port]`; raises ConfigError. */
    public fun coordinator(url: String, password: String? = null) {
        broker = BrokerUrl.parse(url)
        this.password = password
    }

    /** What this device insists on, whatever a coordinator plans. */
    public fun policy(floors: DevicePolicy) {
        this.floors = floors
    }

    /** The same, one by one: `policy { minReports(20); epsilonAtMost(4.0) }`. */
    public fun policy(configure: PolicySettings.() -> Unit) {
        floors = PolicySettings(floors).apply(configure).floors
    }
}

/** The floors of a device; see [DevicePolicy]. */
public class PolicySettings internal constructor(internal var floors: DevicePolicy) {
    /** The fewest devices in a sum that may hold this device's update. */
    public fun minReports(count: Int) {
        floors = floors.copy(minReports = count)
    }

    /** The largest device-level epsilon over all that ever left this device, at [delta]; infinity allows noise off. */
    public fun epsilonAtMost(epsilon: Double, delta: Double = floors.deltaAtMost) {
        floors = floors.copy(epsilonAtMost = epsilon, deltaAtMost = delta)
    }

    /** The largest epsilon that this device's own noise leaves to any of its examples, over all it ever trained. */
    public fun exampleEpsilonAtMost(epsilon: Double) {
        floors = floors.copy(exampleEpsilonAtMost = epsilon)
    }

    /** The fewest examples worth training on. */
    public fun minExamples(count: Int) {
        floors = floors.copy(minExamples = count)
    }

    /** Count on this device's own noise only. */
    public fun localNoise() {
        floors = floors.copy(localNoise = true)
    }
}

/** A population's model on this device: the newest good one that is installed. */
public class Model internal constructor(private val models: InstalledModels) {
    /** What is installed, or null. */
    public val installed: InstalledModel? get() = models.current()

    /** The output for a batch of inputs by name; raises ArtifactError where no model is installed, or TrainingError. */
    public fun predict(vararg inputs: Pair<String, Tensor>): Tensor = models.predict(inputs.toMap())

    /** Serves the model before the current one, which is forgotten; raises ArtifactError where there is none. */
    public fun rollBack(): InstalledModel = models.rollBack()
}

/**
 * The app developer's door: one object that owns a device's folder, collects, trains, predicts and accounts.
 *
 *     val edge = EdgeClient(dir) {
 *         coordinator("mqtts://fl.example.com:8883")
 *         policy { minReports(20); epsilonAtMost(4.0) }
 *     }
 *     val taps = edge.examples("taps", mapOf("x" to f32(16), "y" to i64()), maxRows = 2_000)
 *     edge.join("keyboard", taps)
 *     edge.consent.grant(purpose = "improve typing", textVersion = "3")
 *     edge.start()
 *     taps.add("x" to features, "y" to 3L)
 *     edge.model("keyboard").predict("x" to Tensor.of(features, listOf(1, 16)))
 *
 * The folder holds `identity/` (key, certificate, registrar's certificate), `signer.pub` (who may sign models), the example
 * stores, the device's own journal and ledger, fetched blobs and installed models; one client at a time may own it. A
 * client takes part in one population. Raises ConfigError, IdentityError or StoreError.
 */
public class EdgeClient(private val home: File, configure: EdgeClientSettings.() -> Unit) : Closeable {
    private val settings = EdgeClientSettings().apply(configure)
    private val identity: Identity
    private val signer: ECPublicKey
    private val lock: HomeLock
    private val store: DeviceStore
    private val random = SecureRandom()
    private val examples = HashMap<String, ExampleStore>()
    private val models = HashMap<String, InstalledModels>()
    private val emitted = MutableSharedFlow<DeviceEvent>(0, EVENTS_KEPT, BufferOverflow.DROP_OLDEST)
    private var joined: Joined? = null
    private val running = AtomicReference<Running?>()

    /** What happens, from when it is collected on; to a slow collector the oldest events are lost. */
    public val events: SharedFlow<DeviceEvent> = emitted.asSharedFlow()

    /** The owner's consent: nothing is trained until it is granted. */
    public val consent: Consent

    init {
        if (!home.isDirectory && !home.mkdirs()) throw StoreError("$home cannot be made", "check the path and its permissions")
        identity = settings.identity ?: ownIdentity(File(home, "identity"))
        signer = settings.signer ?: readSigner(File(home, "signer.pub"))
        lock = HomeLock(home)
        try {
            store = DeviceStore(home)
        } catch (error: EdgeError) {
            lock.close()
            throw error
        }
        consent = Consent(store, settings.now) { running.get()?.driver?.wake() }
    }

    /** The name in the device's certificate. */
    public val deviceId: String get() = identity.id

    // ---- what the app gives and gets

    /** The device's examples of that name, made where there are none; see [ExampleStore]. */
    @Synchronized
    public fun examples(
        name: String,
        schema: Schema,
        maxRows: Int = 2_000,
        ttlS: Double = Double.POSITIVE_INFINITY,
    ): ExampleStore {
        requireName(name)
        examples[name]?.let {
            if (it.schema != schema) throw StoreError("the examples '$name' are open already, with other fields", "use another name")
            return it
        }
        val file = File(home, "$name.examples")
        val key = settings.keyPlace(File(home, "$name.examples.key"))
        return ExampleStore(file, schema, maxRows, ttlS, key, settings.now).also { examples[name] = it }
    }

    /**
     * Takes part in a population's training, and serves its models; once, before the client runs.
     *
     * [examples] are what to train on, null only serves; [objections] are asked every few seconds what is against
     * training now, in words, such as "not charging".
     */
    @Synchronized
    public fun join(population: String, examples: ExampleStore? = null, objections: () -> List<String> = { emptyList() }) {
        requireName(population)
        if (joined != null) throw ConfigError("this client has joined '${joined?.population}' already", "join one population")
        val learner = LocalLearner(signer, examples, modelsOf(population))
        joined = Joined(population, learner, objections)
    }

    /** A population's model, joined or not. */
    public fun model(population: String): Model = Model(modelsOf(population))

    /** What left this device, when, for which task, and what it cost. */
    public fun participations(): List<Participation> = synchronized(store) { store.participations() }

    // ---- running

    /** Takes part on this thread until [stop], or until [until] holds. Raises ConfigError or StoreError. */
    public fun run(until: () -> Boolean = { false }) {
        val begun = begin()
        try {
            begun.driver.run { until() }
        } finally {
            end(begun)
        }
    }

    /** Takes part on a thread of its own, until [stop]. Raises ConfigError. */
    public fun start() {
        val begun = begin()
        thread(name = "edge", isDaemon = true) {
            try {
                begun.driver.run()
            } catch (error: EdgeError) {
                settings.log("the device stopped: ${error.message}")
            } finally {
                end(begun)
            }
        }
    }

    /** Ends [run], [start] or [trainNow], from any other thread; an open round is taken up again by the next one. */
    public fun stop() {
        running.get()?.let {
            it.driver.stop()
            it.ended.await()
        }
    }

    /**
     * Takes part until one round that this device entered is over, or the task is complete; says how it ended.
     *
     * Cancelling stops it; an open round is taken up again by the next run. Raises ConfigError or StoreError.
     */
    public suspend fun trainNow(): DeviceEvent? {
        val begun = begin()
        val last = AtomicReference<DeviceEvent?>()
        begun.listener = { event -> if (event !is Deferred && event !is Training && event !is Connected && event !is Unreachable) last.set(event) }
        return suspendCancellableCoroutine { continuation ->
            thread(name = "edge", isDaemon = true) {
                try {
                    begun.driver.run { begun.agent.roundsEnded > 0 || begun.agent.isDone }
                    end(begun)
                    continuation.resume(last.get())
                } catch (error: EdgeError) {
                    end(begun)
                    continuation.resumeWithException(error)
                }
            }
            continuation.invokeOnCancellation { begun.driver.stop() }
        }
    }

    /** Whether the population's task is over and its last model serves here; false while the client does not run. */
    public val isComplete: Boolean get() = running.get()?.agent?.isDone ?: false

    /**
     * Erases examples, their keys, pending updates, fetched blobs and installed models, and revokes the consent.
     *
     * The ledger and the ids of rounds that were left stay: a device that forgot what it said could say another thing. What
     * was uploaded before is in sums of many devices and cannot be taken out.
     */
    public fun withdraw() {
        stop()
        consent.revoke()
        synchronized(this) {
            examples.values.forEach { it.erase() }
            home.listFiles()?.forEach { if (it.name.endsWith(".examples") && it.name.removeSuffix(".examples") !in examples) it.delete() }
            home.listFiles()?.forEach { file ->
                val name = file.name.removeSuffix(".examples.key")
                if (name != file.name && name !in examples) settings.keyPlace(file).erase()
            }
            store.journalRid?.let { store.endRound(it, settings.now(), committed = false, detail = "the owner withdrew") }
            models.values.forEach { it.erase() }
            for (folder in listOf("models", "blobs")) File(home, folder).deleteRecursively()
        }
    }

    override fun close() {
        stop()
        joined?.learner?.close()
        examples.values.forEach { it.close() }
        models.values.forEach { it.close() }
        store.close()
        lock.close()
    }

    private fun begin(): Running {
        val join = synchronized(this) { joined } ?: throw ConfigError("this client joined no population", "call join first")
        val broker = settings.broker ?: throw ConfigError("no coordinator was named", "call coordinator(\"mqtts://...\")")
        lateinit var begun: Running
        val agent = DeviceAgent(
            identity = identity,
            population = join.population,
            store = store,
            blobs = BlobCache(File(home, "blobs")),
            learner = join.learner,
            policy = settings.floors,
            randomBytes = { count -> ByteArray(count).also(random::nextBytes) },
            resendS = settings.resendS,
            consented = { consent.granted },
            onEvent = { event ->
                emitted.tryEmit(event)
                begun.listener(event)
            },
            log = settings.log,
        )
        val transport = transport(broker) { error ->
            val (reason, detail) = Tls.whyUnreachable(error)
            emitted.tryEmit(Unreachable(join.population, settings.now(), reason, detail))
        }
        val driver = Driver(agent, transport, settings.now, join.objections)
        begun = Running(agent, driver)
        if (!running.compareAndSet(null, begun)) throw ConfigError("this client runs already", "stop it first")
        return begun
    }

    private fun transport(broker: BrokerUrl, failed: (IOException) -> Unit): Transport {
        val tls = if (broker.tls) Tls.socketFactory(identity) else null
        return MqttTransport(broker, identity.id, tls, settings.password, log = settings.log, failed = failed)
    }

    private fun end(begun: Running) {
        running.compareAndSet(begun, null)
        begun.ended.countDown()
    }

    @Synchronized
    private fun modelsOf(population: String): InstalledModels {
        requireName(population)
        return models.getOrPut(population) { InstalledModels(File(home, "models/$population"), signer) }
    }

    private fun requireName(name: String) {
        if (!edge.protocol.Topics.isId(name)) {
            throw ConfigError("'${name.take(80)}' cannot be a name", "use 1 to 63 of a-z, 0-9 and '-', not beginning with '-'")
        }
    }

    /** The identity in the folder, renewed where it is time to and the registrar answers. */
    private fun ownIdentity(folder: File): Identity {
        val now = settings.now()
        if (File(folder, Identity.CERTIFICATE_FILE).isFile) Enrolment.finishRenewal(folder)
        if (!Enrolment.isRenewalDue(folder, now)) return Identity.load(folder, now)
        return try {
            Enrolment.renew(folder, now)
        } catch (error: EdgeError) {
            settings.log("the certificate is not renewed: ${error.message}")
            Identity.load(folder, now)
        }
    }

    private fun readSigner(file: File): ECPublicKey = try {
        Signing.publicKeyFromPem(file.readText(), file.path)
    } catch (error: IOException) {
        throw IdentityError("cannot read $file", "ship the model signer's public key with the app", error)
    }

    private class Joined(val population: String, val learner: LocalLearner, val objections: () -> List<String>)

    private class Running(val agent: DeviceAgent, val driver: Driver) {
        val ended = CountDownLatch(1)
        var listener: (DeviceEvent) -> Unit = {}
    }

    private companion object {
        const val EVENTS_KEPT = 1_000
    }
}
