package edge

import edge.inference.InstalledModel
import edge.inference.InstalledModels
import edge.protocol.DevicePolicy
import edge.runtime.BlobCache
import edge.runtime.BrokerUrl
import edge.runtime.Budget
import edge.runtime.Consent
import edge.runtime.DeviceAgent
import edge.runtime.DeviceKeys
import edge.runtime.DeviceStore
import edge.runtime.Driver
import edge.runtime.Enrolment
import edge.runtime.FileKeys
import edge.runtime.HomeLock
import edge.runtime.MqttTransport
import edge.runtime.PrivacyAccount
import edge.runtime.Renewal
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
import java.util.concurrent.TimeUnit
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

    internal var enrolment: Enrolled? = null

    internal class Enrolled(val url: String, val token: String, val registrar: File?)

    /** What training may take: processor, threads, time, traffic a day, memory. */
    public var budget: Budget = Budget()

    /** The bytes of memory that the machine has left, or null where that is not known. */
    public var freeMemory: () -> Long? = { null }

    /**
     * Where a device that has no identity gets one when it first runs: with a [token] that is good for one, from the
     * registrar at [url]. [registrar] is its certificate, to pin, shipped in the app; `registrar.crt` in the folder by default.
     * Another token than the one that the device was enrolled with gets it another identity, as after a revocation.
     */
    public fun enrol(url: String, token: String, registrar: File? = null) {
        enrolment = Enrolled(url, token, registrar)
    }

    /** Where the identity's key is made and stays, as in a phone's hardware; a file in `identity/` where none is given. */
    public var identityKeys: DeviceKeys? = null

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
 * stores, the device's own journal and ledger, fetched blobs and installed models; one client at a time may own it.
 * Everything but [run], [start] and [trainNow] works without a network.
 *
 * Raises ConfigError; IdentityError: there is neither an identity nor a token, or the signer's key is missing; StoreError:
 * the folder cannot be used.
 */
public class EdgeClient(private val home: File, configure: EdgeClientSettings.() -> Unit) : Closeable {
    private val settings = EdgeClientSettings().apply(configure)
    private val identityFolder = File(home, "identity")
    private val signer: ECPublicKey
    private val lock: HomeLock
    private val store: DeviceStore
    private val random = SecureRandom()
    private val examples = HashMap<String, ExampleStore>()
    private val models = HashMap<String, InstalledModels>()
    private val emitted = MutableSharedFlow<DeviceEvent>(0, EVENTS_KEPT, BufferOverflow.DROP_OLDEST)
    private val joins = LinkedHashMap<String, Joined>()
    private val running = AtomicReference<Running?>()
    @Volatile private var failure: EdgeError? = null
    @Volatile private var withdrawn = false

    /** What happens, from when it is collected on; to a slow collector the oldest events are lost. */
    public val events: SharedFlow<DeviceEvent> = emitted.asSharedFlow()

    /** The owner's consent: nothing is trained until it is granted. */
    public val consent: Consent

    /** What left the device, and what it cost. */
    public val privacy: PrivacyAccount

    init {
        if (!home.isDirectory && !home.mkdirs()) throw StoreError("$home cannot be made", "check the path and its permissions")
        lock = HomeLock(home)
        var opened: DeviceStore? = null
        try {
            store = DeviceStore(home).also { opened = it }
            if (store.get(WITHDRAWING) != null) erase()
            if (settings.identity == null && settings.enrolment == null) Identity.read(certificateFile)
            signer = settings.signer ?: readSigner(File(home, "signer.pub"))
        } catch (error: EdgeError) {
            opened?.close()
            lock.close()
            throw error
        }
        withdrawn = false
        consent = Consent(store, settings.now) { running.get()?.driver?.wake() }
        privacy = PrivacyAccount(store, settings.floors)
    }

    /** The name in the device's certificate; empty until it is enrolled. */
    public val deviceId: String
        get() = settings.identity?.id ?: if (!certificateFile.isFile) "" else Registrar.idOf(
            Signing.fromPem(Identity.read(certificateFile), "CERTIFICATE", Identity.CERTIFICATE_FILE),
        )

    private val certificateFile: File get() = File(identityFolder, Identity.CERTIFICATE_FILE)

    // ---- what the app gives and gets

    /**
     * The device's examples of that name, made where there are none; of the rows that are added, the share [holdout] is kept
     * to judge models by and never trained on. See [ExampleStore].
     */
    @Synchronized
    public fun examples(
        name: String,
        schema: Schema,
        maxRows: Int = 2_000,
        ttlS: Double = Double.POSITIVE_INFINITY,
        holdout: Double = 0.0,
    ): ExampleStore {
        requireName(name)
        examples[name]?.let {
            if (it.schema != schema) throw StoreError("the examples '$name' are open already, with other fields", "use another name")
            return it
        }
        val file = File(home, "$name$EXAMPLES")
        return ExampleStore(file, schema, maxRows, ttlS, keyOf(name), settings.now, holdout).also { examples[name] = it }
    }

    private fun keyOf(examples: String): KeyPlace = settings.keyPlace(File(home, "$examples$EXAMPLES.key"))

    /**
     * Takes part in a population's training, and serves its models; before the client runs, once for each population.
     *
     * [examples] are what to train on, null only serves; with [analytics] it answers signed questions about them, as it
     * trains: clipped, noised, masked. [objections] are asked every few seconds what is against training now, in words, such
     * as "not charging". Raises ConfigError.
     */
    @Synchronized
    public fun join(
        population: String,
        examples: ExampleStore? = null,
        analytics: Boolean = false,
        objections: () -> List<String> = { emptyList() },
    ) {
        requireName(population)
        if (population in joins || running.get() != null) {
            val reason = if (running.get() != null) "runs already" else "has joined '$population' already"
            throw ConfigError("this client $reason", "join each population once, before run or start")
        }
        val learner = LocalLearner(signer, examples, modelsOf(population), analytics, settings.budget)
        joins[population] = Joined(learner, objections)
    }

    /** A population's model, joined or not. */
    public fun model(population: String): Model = Model(modelsOf(population))

    /** What is against training now, in words, by population. */
    public fun objections(): Map<String, List<String>> = joins.mapValues { it.value.objections() }

    /** Whether a joined population's task is over and its last model serves here; of all where none is named. */
    public fun isComplete(population: String? = null): Boolean = running.get()?.agent?.isComplete(population) ?: false

    // ---- running

    /**
     * Takes part on this thread until [stop], or until [until], asked every few seconds, holds.
     *
     * Raises ConfigError; IdentityError: the registrar refused the token, or the certificate cannot be used; StoreError: the
     * device's store failed, and nothing that it does not hold was sent.
     */
    public fun run(until: () -> Boolean = { false }): Unit = carry(begin()) { until() }

    /** Takes part on a thread of its own, until [stop]. Raises ConfigError. */
    public fun start() {
        val begun = begin()
        thread(name = "edge", isDaemon = true) {
            try {
                carry(begun) { false }
            } catch (error: EdgeError) {
                settings.log("the device stopped: ${error.message}")
                failure = error
            }
        }
    }

    /**
     * Ends [run], [start] or [trainNow]; an open round is taken up again by the next one. It waits for the end, unless it
     * is called from there, by a collector of events. Raises EdgeError: why what [start] began had ended by itself.
     */
    public fun stop() {
        end()
        failure?.let {
            failure = null
            throw it
        }
    }

    /** Whether it has ended; false where it is called from what is to end. */
    private fun end(): Boolean {
        val begun = running.get() ?: return true
        begun.stop()
        if (begun.thread === Thread.currentThread()) return false
        begun.ended.await()
        return true
    }

    /**
     * Takes part until one round that this device entered is over, or the task is complete; says how it ended.
     *
     * It is a round of [population], of any where none is named. Cancelling ends it before training's next step; an open
     * round is taken up again by the next run. Raises as [run].
     */
    public suspend fun trainNow(population: String? = null): DeviceEvent? {
        if (population != null && population !in joins) {
            throw ConfigError("this client has not joined '$population'", "call join first")
        }
        val begun = begin()
        val last = AtomicReference<DeviceEvent?>()
        begun.listener = { event ->
            val says = event !is Deferred && event !is Training && event !is Connected && event !is Unreachable
            if (says && population in setOf(null, event.population)) last.set(event)
        }
        return suspendCancellableCoroutine { continuation ->
            continuation.invokeOnCancellation { begun.stop() }
            thread(name = "edge", isDaemon = true) {
                try {
                    carry(begun) { agent ->
                        agent.ended.any { population == null || it == population } || agent.isComplete(population)
                    }
                    continuation.resume(last.get())
                } catch (error: EdgeError) {
                    continuation.resumeWithException(error)
                }
            }
        }
    }

    /**
     * The owner wants out: stops, and erases what was given to this device, for good.
     *
     * Gone are examples with their keys, the identity in the device's folder, the open round with its update, receipts, and
     * everything that tells what was done when. What is kept: that consent was revoked; of the ledger what each task cost, so
     * that budgets hold if the owner ever consents again; the installed models, which still predict. What was uploaded is in
     * sums of many devices and cannot be taken out.
     *
     * This client and its example stores are of no more use then, but for [model]. Killed half way, the next client made in
     * this folder completes it. Called by a collector of events, on the thread that runs the device, it is carried out when
     * that ends. Raises StoreError: something cannot be erased; it may be called again.
     */
    public fun withdraw() {
        try {
            store.put(WITHDRAWING, "1", durable = true)
        } finally {
            consent.revoke() // also where nothing can be written: no training goes on in this process
        }
        if (end() && store.get(WITHDRAWING) != null) erase()
    }

    @Synchronized
    private fun erase() {
        withdrawn = true
        try {
            // The identity first: what is left half erased can never act again.
            identityKeys.keepOnly(null)
            remove(identityFolder)
            examples.values.forEach { it.close() }
            for (file in home.listFiles().orEmpty()) {
                val name = file.name.removeSuffix(".key")
                if (!name.endsWith(EXAMPLES)) continue
                keyOf(name.removeSuffix(EXAMPLES)).erase()
                remove(File(home, name))
            }
            remove(File(home, BLOBS))
        } catch (error: IOException) {
            throw StoreError("the device in $home is not erased: ${error.message}", "check its permissions, and try again", error)
        }
        store.strip()
        store.drop(WITHDRAWING)
    }

    private fun remove(file: File) {
        if (!file.deleteRecursively() && file.exists()) throw IOException("$file cannot be removed")
    }

    /** Stops, and closes the device's files. Raises as [stop]. */
    override fun close() {
        try {
            stop()
        } finally {
            joins.values.forEach { it.learner.close() }
            examples.values.forEach { it.close() }
            models.values.forEach { it.close() }
            store.close()
            lock.close()
        }
    }

    private fun begin(): Running {
        if (withdrawn) throw ConfigError("the owner withdrew", "to take part again make another client, with a new identity")
        if (joins.isEmpty()) throw ConfigError("this client joined no population", "call join first")
        if (settings.broker == null) throw ConfigError("no coordinator was named", "call coordinator(\"mqtts://...\")")
        val begun = Running()
        if (!running.compareAndSet(null, begun)) throw ConfigError("this client runs already", "stop it first")
        return begun
    }

    private fun carry(begun: Running, done: (DeviceAgent) -> Boolean) {
        begun.thread = Thread.currentThread()
        try {
            val identity = identified(begun)
            if (identity != null) {
                val agent = agent(identity, begun)
                val driver = Driver(agent, transport(agent, begun), settings.now, ::objections, renewal(), settings.log)
                begun.launch(agent, driver)
                driver.run { done(agent) }
            }
            if (store.get(WITHDRAWING) != null) erase()
        } finally {
            running.set(null)
            begun.ended.countDown()
        }
    }

    /** The device's identity, from the registrar where it has none or an expired one; null if stopped meanwhile. */
    private fun identified(begun: Running): Identity? {
        var pauseS = RETRY_MIN_S
        while (!begun.isStopping) {
            try {
                return settings.identity ?: identify()
            } catch (error: TransportError) {
                settings.log("not enrolled yet: ${error.message} (${error.hint})")
                for (population in joins.keys) {
                    tell(Deferred(population, settings.now(), "not enrolled: ${error.message}"), begun)
                }
            }
            // Of many devices that found their registrar gone, each comes back at a time of its own.
            begun.await(pauseS * (0.5 + random.nextDouble() / 2))
            pauseS = minOf(RETRY_MAX_S, 2 * pauseS)
        }
        return null
    }

    private fun identify(): Identity {
        val now = settings.now()
        val asked = settings.enrolment
        if (asked != null && (!certificateFile.isFile || Enrolment.isOfAnotherToken(identityFolder, asked.token))) {
            val registrar = Identity.read(asked.registrar ?: File(home, Identity.REGISTRAR_FILE))
            return Enrolment.enrol(identityFolder, asked.url, asked.token, registrar, now, keys = identityKeys)
                .also { settings.log("enrolled as ${it.id}") }
        }
        if (Enrolment.isExpired(identityFolder, now)) return Enrolment.renew(identityFolder, now, identityKeys)
        return Enrolment.load(identityFolder, now, identityKeys)
    }

    private val identityKeys: DeviceKeys get() = settings.identityKeys ?: FileKeys(identityFolder)

    private fun renewal(): Renewal? = if (settings.identity == null) Renewal(identityFolder, identityKeys, settings.log) else null

    private fun agent(identity: Identity, begun: Running): DeviceAgent {
        for (population in joins.keys) {
            try {
                modelsOf(population).requireWhole(store.number("installed_version/$population") > 0)
            } catch (error: EdgeError) {
                settings.log("the model of $population is fetched again: ${error.message}")
                store.drop("installed_version/$population")
            }
        }
        return DeviceAgent(
            identity = identity,
            learners = joins.mapValues { it.value.learner },
            store = store,
            blobs = BlobCache(File(home, BLOBS)),
            policy = settings.floors,
            randomBytes = { count -> ByteArray(count).also(random::nextBytes) },
            resendS = settings.resendS,
            consent = consent,
            budget = settings.budget,
            freeMemory = settings.freeMemory,
            onEvent = { tell(it, begun) },
            log = settings.log,
        )
    }

    private fun tell(event: DeviceEvent, begun: Running) {
        emitted.tryEmit(event)
        begun.listener(event)
    }

    private fun transport(agent: DeviceAgent, begun: Running): Transport {
        val broker = checkNotNull(settings.broker)
        val tls = if (broker.tls) ({ Tls.socketFactory(agent.identity) }) else null
        return MqttTransport(broker, agent.deviceId, tls, settings.password, log = settings.log) { error ->
            val (reason, detail) = Tls.whyUnreachable(error)
            for (population in joins.keys) tell(Unreachable(population, settings.now(), reason, detail), begun)
        }
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

    private fun readSigner(file: File): ECPublicKey = try {
        Signing.publicKeyFromPem(file.readText(), file.path)
    } catch (error: IOException) {
        throw IdentityError("cannot read $file", "ship the model signer's public key with the app", error)
    }

    private class Joined(val learner: LocalLearner, val objections: () -> List<String>)

    /** What [run], [start] or [trainNow] began; its agent is there once the device has an identity. */
    private class Running {
        private val stopped = CountDownLatch(1)
        val ended = CountDownLatch(1)
        @Volatile var thread: Thread? = null
        @Volatile var listener: (DeviceEvent) -> Unit = {}
        @Volatile var agent: DeviceAgent? = null
        @Volatile var driver: Driver? = null

        val isStopping: Boolean get() = stopped.count == 0L

        fun launch(agent: DeviceAgent, driver: Driver) {
            this.agent = agent
            this.driver = driver
            if (isStopping) driver.stop()
        }

        fun stop() {
            stopped.countDown()
            driver?.stop()
        }

        fun await(seconds: Double) {
            stopped.await((seconds * 1e3).toLong(), TimeUnit.MILLISECONDS)
        }
    }

    private companion object {
        const val EVENTS_KEPT = 1_000
        const val EXAMPLES = ".examples"
        const val BLOBS = "blobs"
        const val RETRY_MIN_S = 5.0
        const val RETRY_MAX_S = 600.0

        /** Stands in the device's store from the owner's word until all is erased. */
        const val WITHDRAWING = "withdrawing"
    }
}
