package edge.demo

import edge.android.KeystoreKeyPlace
import edge.protocol.DevicePolicy
import java.io.File
import javax.crypto.spec.SecretKeySpec
import kotlin.system.exitProcess

/**
 * What the app's device makes of bad input, in a JVM, for the Python tests; it says what it finds.
 *
 *     java edge.demo.BadInputKt HOME
 *
 * HOME has `signer.pub`, `model.edge`, and `strange.edge` with an operator that nobody has.
 */
fun main(arguments: Array<String>) {
    val folder = File(arguments.single())
    cutOff(folder)
    damaged(folder)
    say("strange: " + phone(folder, "strange", "strange.edge").use { "${it.version}, ${it.problem}, ${it.notice}" })
    exitProcess(0)
}

private fun phone(folder: File, home: String, model: String = "model.edge") = DigitsDevice(
    home = File(folder, home),
    keyPlace = { KeystoreKeyPlace(it) { SecretKeySpec(ByteArray(32) { 1 }, "AES") } },
    signer = File(folder, "signer.pub").readText(),
    startingModel = { File(folder, model).readBytes() },
    policy = DevicePolicy(minReports = 2),
    log = { say("log: $it") },
)

private fun found(device: DigitsDevice): String {
    val predicts = device.predict(Shapes.digits[3].pixels()!!) != null
    return "version ${device.version}, ${device.problem}, ${device.notice}, predicts $predicts"
}

/** A process ended after it had written a part of another model. */
private fun cutOff(folder: File) {
    say("first: " + phone(folder, "edge").use(::found))
    val models = File(folder, "edge/models/digits")
    val half = File(models, "ab".repeat(32)).apply { mkdirs() }
    File(half, "head.part").writeBytes(ByteArray(10))
    File(models, "installing").writeText("7 ${"ab".repeat(32)} ${"cd".repeat(32)}\n")
    say("cut off: " + phone(folder, "edge").use(::found))
    say("left: ${half.exists()}")
    // The same, where it was cut off after the model had been installed whole.
    File(models, "installing").writeText(File(models, "installed").readLines()[0] + "\n")
    say("after: " + phone(folder, "edge").use(::found))
}

/** The disk changed its mind about what it holds. */
private fun damaged(folder: File) {
    val models = File(folder, "edge/models/digits")
    val checkpoint = checkNotNull(models.listFiles()).single { it.name.endsWith(".checkpoint") }
    checkpoint.writeBytes(checkpoint.readBytes().also { it[0] = (it[0] + 1).toByte() })
    say("damaged: " + phone(folder, "edge").use(::found))
    say("again: " + phone(folder, "edge").use(::found))
}

private fun say(what: String) {
    println(what)
    System.out.flush()
}
