package edge.demo

import android.app.Application
import android.net.Uri
import edge.IdentityError
import edge.android.Eligibility
import edge.android.JobPlans
import edge.android.JobScheduling
import edge.android.KeystoreKeyPlace
import edge.android.KeystoreKeys
import edge.android.PhoneConditions
import edge.android.SealedFiles
import edge.android.StopSignal
import edge.android.TrainingApp
import edge.android.TrainingWork
import edge.android.WorkResult
import java.io.ByteArrayOutputStream
import java.io.File
import java.io.IOException
import java.util.Locale

/** Wires the app: what is pure to what is the phone's. The system starts it for a window, or for a job alone. */
class DemoApplication : Application(), TrainingApp, DemoHost {
    private val keys by lazy { KeystoreKeys("edge") }
    private val choices by lazy { SealedChoices(SealedFiles(File(noBackupFilesDir, "choices"), keys::storageKey)) }
    private val jobs by lazy { JobScheduling(this) }
    private val phone by lazy { PhoneConditions(this) }
    private val device by lazy {
        DigitsDevice(
            home = File(noBackupFilesDir, "edge"),
            keyPlace = { KeystoreKeyPlace(it, keys::storageKey) },
            signer = String(asset("signer.pub")),
            startingModel = { asset("digits.edge") },
            identityKeys = keys.identityKeys,
            freeMemory = { PhoneConditions(this).read().freeMemoryBytes },
        )
    }

    /** The conditions of the job that runs. */
    @Volatile
    private var running: Eligibility = Eligibility()

    override val eligibility: Eligibility = Eligibility()

    override val trainingWork: TrainingWork = TrainingWork(::train)

    override fun trainingFailed(error: Exception) {
        // The identity was good when the invitation was opened.
        val kind = if (error is IdentityError) Trouble.Kind.EXPIRED else Trouble.Kind.FAILED
        device.listener(Learned.RunChanged(false, Trouble(kind, error.message ?: error.toString())))
    }

    override fun demo(show: (DemoState) -> Unit): Demo =
        Demo(device, device, choices, PhoneLearning(), eligibility, phone::read, show).also { it.start() }

    override fun listen(listener: (Learned) -> Unit) {
        device.listener = listener
        device.tellHistory()
    }

    override fun read(document: Uri): String = try {
        contentResolver.openInputStream(document)?.use { stream ->
            val read = ByteArrayOutputStream()
            val piece = ByteArray(PIECE_BYTES)
            while (read.size() <= MOST_BYTES) {
                val count = stream.read(piece)
                if (count < 0) return String(read.toByteArray())
                read.write(piece, 0, count)
            }
            ""
        }.orEmpty()
    } catch (_: IOException) {
        ""
    }

    private fun train(eligibility: Eligibility, stop: StopSignal): WorkResult {
        // A job may be what started this process.
        val invitation = choices.invitation
        if (!choices.consenting || invitation == null) return WorkResult.DONE
        running = eligibility
        device.join(Invitation.parse(invitation), ::objections)
        val end = System.nanoTime() + RUN_S * 1_000_000_000
        device.listener(Learned.RunChanged(true, null))
        val open = device.run { stop.isStopped || System.nanoTime() > end }
        device.listener(Learned.RunChanged(false, null))
        return if (open) WorkResult.AGAIN else WorkResult.DONE
    }

    private fun objections(): List<String> =
        running.objections(phone.read()).map { it.name.lowercase(Locale.ROOT).replace('_', ' ') }

    private fun asset(name: String): ByteArray = assets.open(name).use { it.readBytes() }

    private inner class PhoneLearning : Learning {
        override fun join(invitation: Invitation) {
            device.join(invitation, ::objections)
            jobs.schedule(JobPlans.periodic(eligibility))
            device.tellHistory()
        }

        override fun trainNow() = jobs.schedule(JobPlans.once(eligibility))

        override fun withdraw() {
            jobs.cancel(JobPlans.PERIODIC_ID)
            jobs.cancel(JobPlans.ONCE_ID)
            device.withdraw()
            keys.erase()
        }
    }

    private companion object {
        /** The system gives a job about ten minutes. */
        const val RUN_S = 510L
        const val PIECE_BYTES = 4_096
        const val MOST_BYTES = 20_000
    }
}
