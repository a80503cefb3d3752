package edge.demo

import android.app.Application
import android.util.Base64
import edge.android.Eligibility
import edge.android.KeystoreKeys
import edge.android.PhoneConditions
import edge.android.SealedFiles
import java.io.File

/** Wires the app: what is pure to what is the phone's. The system starts it for a window, or for a job alone. */
class DemoApplication : Application() {
    /** Told what happens on the learning side, on any thread. */
    @Volatile
    var listener: (Learned) -> Unit = {}

    private val keys by lazy { KeystoreKeys("edge") }
    private val files by lazy { SealedFiles(File(noBackupFilesDir, "edge"), keys.storageKey()) }
    private val model by lazy { OrtDigits { BundledModel.read(asset("digits.edge"), signer()) } }

    /** The app's state, for a window that shows it. */
    fun demo(show: (DemoState) -> Unit): Demo {
        val phone = PhoneConditions(this)
        return Demo(model, SealedShelf(files), SealedChoices(files), NoLearning, Eligibility(), phone::read, show)
            .also { it.start() }
    }

    private fun asset(name: String): ByteArray = assets.open(name).use { it.readBytes() }

    private fun signer(): ByteArray {
        val pem = String(asset("signer.pub")).lines().filter { !it.startsWith("-----") }.joinToString("")
        return Base64.decode(pem, Base64.DEFAULT)
    }
}

/** Until the client is wired in. */
private object NoLearning : Learning {
    override fun join() = Unit
    override fun trainNow() = Unit
    override fun withdraw() = Unit
}
