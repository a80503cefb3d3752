package edge.demo

import edge.Connected
import edge.Deferred
import edge.DeviceEvent
import edge.EdgeClient
import edge.EdgeError
import edge.Installed
import edge.Refused
import edge.Registrar
import edge.Signing
import edge.StoreError
import edge.Trained
import edge.Training
import edge.TrainingError
import edge.Unreachable
import edge.Uploaded
import edge.inference.InstalledModels
import edge.protocol.DevicePolicy
import edge.runtime.DeviceKeys
import edge.runtime.Receipt
import edge.training.ExampleStore
import edge.training.KeyPlace
import edge.training.Tensor
import edge.training.f32
import edge.training.i64
import java.io.Closeable
import java.io.File
import java.io.IOException
import kotlinx.coroutines.CoroutineScope
import kotlinx.coroutines.Dispatchers
import kotlinx.coroutines.cancel
import kotlinx.coroutines.launch

/**
 * The device behind the app, for any JVM: examples and models at once, and the client once the person takes part.
 *
 * One process at a time may own [home]. [signer] is the publisher's public key, PEM; [startingModel] the bundle that the app
 * comes with. Not before an invitation was accepted is there anything that could send.
 *
 * @param keyPlace where the examples' key is kept.
 * @param identityKeys where the identity's key is made and stays; files in [home] where null.
 * @param policy what this device insists on.
 * @param population whose rounds it takes part in.
 * @param freeMemory bytes that the phone has left; training that needs more is declined.
 */
class DigitsDevice(
    private val home: File,
    private val keyPlace: (File) -> KeyPlace,
    private val signer: String,
    private val startingModel: () -> ByteArray,
    private val identityKeys: DeviceKeys? = null,
    private val policy: DevicePolicy = DevicePolicy(epsilonAtMost = DemoState.DEFAULT_EPSILON),
    private val population: String = POPULATION,
    private val now: () -> Double = { System.currentTimeMillis() / 1e3 },
    private val log: (String) -> Unit = {},
    private val freeMemory: () -> Long? = { null },
) : DigitModel, ExampleShelf, Closeable {
    private var client: EdgeClient? = null
    private var store: ExampleStore? = null
    private var models: InstalledModels? = null
    private var found: ModelProblem? = null
    private var repaired: Notice? = null
    private var joinedBy: Invitation? = null

    /** Told what happens, on any thread. */
    @Volatile
    var listener: (Learned) -> Unit = {}

    // ---- the model

    @get:Synchronized
    override val version: Int? get() = if (problem == null) installedVersion()?.toInt() else null

    @get:Synchronized
    override val problem: ModelProblem?
        get() {
            if (models == null) found = open()
            return found
        }

    @get:Synchronized
    override val notice: Notice?
        get() {
            problem // Opens the models.
            return repaired
        }

    @Synchronized
    override fun predict(pixels: FloatArray): FloatArray? {
        if (problem != null) return null
        val image = "x" to Tensor.of(pixels, IMAGE)
        return try {
            (client?.model(population)?.predict(image) ?: models?.predict(mapOf(image)))?.floats()
        } catch (error: EdgeError) {
            log("no prediction: ${error.message}")
            null
        }
    }

    /** Where no model is installed, the one that the app came with is; this is also where the runtime is first used. */
    private fun open(): ModelProblem? = try {
        val opened = InstalledModels(File(home, "models/$population"), Signing.publicKeyFromPem(signer, "signer.pub"))
        models = opened
        if (opened.wasCutOff) repaired = Notice.CUT_OFF
        if (!serves(opened)) {
            opened.erase()
            repaired = Notice.REPLACED
        }
        opened.installFirst(startingModel())
        null
    } catch (error: EdgeError) {
        log("no model: ${error.message}")
        ModelProblem.BAD_MODEL
    } catch (_: LinkageError) {
        // The native library is not in this build, or not for this processor.
        ModelProblem.NO_RUNTIME
    }

    /** Whether what is installed can predict, or nothing is. */
    private fun serves(opened: InstalledModels): Boolean = try {
        if (opened.current() != null) opened.predict(mapOf("x" to Tensor.of(FloatArray(PIXELS), IMAGE)))
        true
    } catch (error: EdgeError) {
        log("the installed model cannot be used: ${error.message}")
        false
    }

    private fun installedVersion(): Long? = client?.model(population)?.installed?.version ?: models?.current()?.version

    // ---- the examples

    @Synchronized
    override fun all(): List<Example> {
        val rows = examples()
        val count = rows.count
        if (count == 0) return emptyList()
        val found = rows.take((0 until count).toList())
        val pixels = found.getValue("x").floats().toList().chunked(PIXELS)
        return pixels.zip(found.getValue("y").longs().toList()) { image, digit -> Example(image, digit.toInt()) }
    }

    @Synchronized
    override fun add(example: Example) {
        val image = Tensor.of(example.pixels.toFloatArray(), listOf(1, Drawing.SIDE, Drawing.SIDE))
        examples().add("x" to image, "y" to example.digit.toLong())
    }

    @Synchronized
    override fun clear() {
        examples().erase()
    }

    private fun examples(): ExampleStore = client?.examples(EXAMPLES, SCHEMA, MOST_EXAMPLES) ?: store
        ?: ExampleStore(
            File(home, "$EXAMPLES.examples"),
            SCHEMA,
            MOST_EXAMPLES,
            keyPlace = keyPlace(File(home, "$EXAMPLES.examples.key")),
            now = now,
        ).also { store = it }

    // ---- taking part

    /**
     * Take part from now on; with another invitation than before, by that one. What is stored stays, and so does the ledger.
     *
     * The phone enrols when it first runs. Raises EdgeError: the invitation is no good, or the folder cannot be used.
     *
     * @param objections what is against training now, in words; asked while it runs.
     */
    @Synchronized
    fun join(invitation: Invitation, objections: () -> List<String>) {
        if (client != null && joinedBy == invitation) return
        val registrar = registrarFile(invitation)
        client?.close()
        client = null
        closeShelf()
        val made = EdgeClient(home) {
            enrol(invitation.registrar, invitation.token, registrar)
            identityKeys = this@DigitsDevice.identityKeys
            signer = Signing.publicKeyFromPem(this@DigitsDevice.signer, "signer.pub")
            keyPlace = this@DigitsDevice.keyPlace
            now = this@DigitsDevice.now
            log = this@DigitsDevice.log
            freeMemory = this@DigitsDevice.freeMemory
            coordinator(invitation.coordinator)
            policy(this@DigitsDevice.policy)
        }
        client = made
        joinedBy = invitation
        made.join(population, examples(), objections = objections)
        if (!made.consent.granted) made.consent.grant("improve the recognition of digits", CONSENT_TEXT)
    }

    private fun registrarFile(invitation: Invitation): File = try {
        Registrar.fromPem(invitation.certificate)
        home.mkdirs()
        File(home, "registrar.crt").apply { writeText(invitation.certificate) }
    } catch (error: IOException) {
        throw StoreError("cannot keep the invitation: ${error.message}", "free some storage on this phone", error)
    }

    /** What left this device, oldest first. */
    @Synchronized
    fun participations(): List<Receipt> = client?.privacy?.receipts().orEmpty()

    /**
     * Take part on this thread until [until] holds; it is asked every few seconds. Raises EdgeError.
     *
     * @return whether it was ended in an open round, which another run takes up again.
     */
    fun run(until: () -> Boolean): Boolean {
        val running = synchronized(this) { client } ?: return false
        var open = false
        // Unconfined: whoever emits calls it, so that the order is that of the events.
        val scope = CoroutineScope(Dispatchers.Unconfined)
        scope.launch {
            running.events.collect { event ->
                open = when (event) {
                    is Training, is Trained -> true
                    is Deferred, is Unreachable, is Connected -> open
                    is Uploaded, is Installed, is Refused -> false
                }
                tell(event)
            }
        }
        try {
            running.run { until() || running.isComplete(population) }
        } catch (error: OutOfMemoryError) {
            // The bundle's own parts, on their way in. The round is over for this phone, the app is not.
            throw TrainingError("the round's model does not fit into this phone's memory", "wait for another round", error)
        } finally {
            scope.cancel()
        }
        return open
    }

    /** Say what is known from before: the ledger, and the rounds in it. */
    fun tellHistory() {
        val ledger = participations()
        for (one in ledger) listener(Learned.RoundChanged(Round(one.roundNumber.toInt(), shared(one))))
        val newest = ledger.lastOrNull()
        listener(Learned.PrivacyChanged(newest?.epsilon ?: 0.0, policy.epsilonAtMost, newest?.delta ?: policy.deltaAtMost))
    }

    private fun tell(event: DeviceEvent) {
        when (event) {
            is Training -> listener(Learned.ProgressChanged(Progress(event.roundNumber.toInt(), event.done, event.steps)))
            is Trained -> listener(Learned.RoundChanged(Round(event.roundNumber.toInt(), Stage.Trained(event.examples))))
            is Uploaded -> tellHistory()
            is Installed -> {
                participations().lastOrNull()?.let {
                    val stage = Stage.Finished(event.version.toInt(), receipt(it), it.epsilon)
                    listener(Learned.RoundChanged(Round(it.roundNumber.toInt(), stage)))
                }
                listener(Learned.ModelChanged(event.version.toInt(), null))
            }
            is Refused -> listener(Learned.RoundChanged(Round(event.roundNumber.toInt(), Stage.Refused(event.reason, event.detail))))
            is Deferred -> listener(Learned.Waiting(event.reason))
            is Unreachable -> listener(Learned.TroubleChanged(trouble(event)))
            is Connected -> listener(Learned.Connected)
        }
    }

    private fun trouble(event: Unreachable): Trouble {
        val kind = when (event.reason) {
            Unreachable.CERTIFICATE_REVOKED -> Trouble.Kind.REVOKED
            Unreachable.CERTIFICATE_EXPIRED -> Trouble.Kind.EXPIRED
            else -> Trouble.Kind.UNREACHABLE
        }
        return Trouble(kind, event.detail)
    }

    /** Stop, and erase what is the person's: examples, keys, pending updates, models that came from rounds. */
    fun withdraw() {
        val leaving = synchronized(this) { client.also { client = null } }
        if (leaving != null) {
            leaving.withdraw()
            leaving.close()
            // They say nothing of this person, but came from rounds; the app's own serves again.
            InstalledModels(File(home, "models/$population"), Signing.publicKeyFromPem(signer, "signer.pub")).erase()
        } else {
            synchronized(this) {
                examples().erase()
                closeShelf()
                // The next one begins with a key of its own.
                keyPlace(File(home, "$EXAMPLES.examples.key")).erase()
                File(home, "$EXAMPLES.examples").delete()
                identityKeys?.keepOnly(null)
            }
        }
        synchronized(this) { closeShelf() }
    }

    @Synchronized
    override fun close() {
        closeShelf()
        client?.close()
        client = null
    }

    private fun closeShelf() {
        store?.close()
        store = null
        models?.close()
        models = null
    }

    private fun shared(one: Receipt) = Stage.Shared(one.sentBytes, receipt(one), one.epsilon)

    private fun receipt(one: Receipt) = one.sentSha256.hex().take(RECEIPT_DIGITS)

    companion object {
        /** Whose rounds this app takes part in. */
        const val POPULATION: String = "digits"

        /** Which text the person agreed to: the facts above the button, `fact_phone` to `fact_stop`. */
        const val CONSENT_TEXT: String = "2"
        private const val EXAMPLES = "digits"
        private const val MOST_EXAMPLES = 500
        private const val RECEIPT_DIGITS = 16
        private const val PIXELS = Drawing.SIDE * Drawing.SIDE
        private val IMAGE = listOf(1, 1, Drawing.SIDE, Drawing.SIDE)
        private val SCHEMA = mapOf("x" to f32(1, Drawing.SIDE, Drawing.SIDE), "y" to i64())
    }
}
