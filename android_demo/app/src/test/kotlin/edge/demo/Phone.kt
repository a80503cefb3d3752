package edge.demo

import edge.android.KeystoreKeyPlace
import edge.protocol.DevicePolicy
import java.io.File
import javax.crypto.spec.SecretKeySpec
import kotlin.system.exitProcess

/**
 * The app's device in a JVM, for the Python tests: stores drawings, takes part until the task is complete, withdraws.
 *
 *     java edge.demo.PhoneKt HOME POPULATION
 *
 * HOME has `invitation`, `signer.pub` and `model.edge`.
 */
fun main(arguments: Array<String>) {
    val (home, population) = arguments
    val folder = File(home)
    val device = DigitsDevice(
        home = File(folder, "edge"),
        keyPlace = { KeystoreKeyPlace(it) { SecretKeySpec(ByteArray(32) { 1 }, "AES") } },
        signer = File(folder, "signer.pub").readText(),
        startingModel = { File(folder, "model.edge").readBytes() },
        policy = DevicePolicy(minReports = 2, epsilonAtMost = Double.POSITIVE_INFINITY),
        population = population,
        log = ::say,
    )
    device.listener = { say("learned $it") }
    repeat(3) { Shapes.digits.forEachIndexed { digit, drawing -> device.add(Example(drawing.pixels()!!.toList(), digit)) } }
    say("starts with version ${device.version}, ${device.problem}, ${device.all().size} examples")
    val pixels = Shapes.digits[3].pixels()!!
    val before = device.predict(pixels)!!.toList()
    device.join(Invitation.parse(File(folder, "invitation").readText(), mayBePlain = true)) { emptyList() }
    say("joined with ${device.all().size} examples")
    say("open round: ${device.run { false }}")
    say("model ${device.version}")
    for (one in device.participations()) say("round ${one.roundNumber}: ${one.sentBytes} bytes")
    say("predicts otherwise: ${before != device.predict(pixels)!!.toList()}")
    device.withdraw()
    say("after withdrawing: version ${device.version}, ${device.all().size} examples, ${device.participations().size} shown")
    device.close()
    exitProcess(0)
}

private fun say(what: String) {
    println(what)
    System.out.flush()
}
