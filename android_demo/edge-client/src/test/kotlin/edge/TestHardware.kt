package edge

import edge.runtime.DeviceKey
import edge.runtime.DeviceKeys
import java.io.File
import java.math.BigInteger
import java.security.KeyPair
import java.security.KeyPairGenerator
import java.security.SecureRandom
import java.security.Signature
import java.security.interfaces.ECPrivateKey
import java.security.spec.ECGenParameterSpec
import java.text.SimpleDateFormat
import java.util.Date
import java.util.Locale
import java.util.TimeZone
import kotlin.system.exitProcess
import kotlinx.coroutines.CoroutineScope
import kotlinx.coroutines.Dispatchers
import kotlinx.coroutines.launch

/**
 * A phone of the Python tests whose hardware attests keys, in a JVM: it enrols and runs, or withdraws.
 *
 *     java edge.TestHardwareKt HOME BROKER REGISTRAR [withdraw]
 *
 * HOME has `registrar.crt` and `signer.pub`; EDGE_ENROL_TOKEN is the token. The hardware is in HOME/hardware, with its maker's
 * root in `maker.pem`.
 */
fun main(arguments: Array<String>) {
    val (home, broker, registrar) = arguments
    val hardware = SoftwareHardware(File(home, "hardware"))
    try {
        EdgeClient(File(home)) {
            coordinator(broker)
            enrol(registrar, System.getenv("EDGE_ENROL_TOKEN").orEmpty())
            identityKeys = hardware
            log = ::tell
        }.use { edge ->
            edge.join("p")
            CoroutineScope(Dispatchers.Unconfined).launch { edge.events.collect { tell("event $it") } }
            if (arguments.getOrNull(3) == "withdraw") edge.withdraw() else edge.run()
        }
        tell("withdrawn, with ${hardware.all().size} keys")
    } catch (error: EdgeError) {
        tell("error: ${error.message}")
    }
    exitProcess(0)
}

private fun tell(what: String) = println(what).also { System.out.flush() }

/** Keys in files, and certificates of the form in which Android's hardware attests keys; made by software, for tests. */
internal class SoftwareHardware(private val folder: File) : DeviceKeys {
    private val maker: ECPrivateKey
    private val root: ByteArray

    init {
        folder.mkdirs()
        val (key, certificate) = File(folder, "maker.pkcs8") to File(folder, "maker.pem")
        if (!certificate.exists()) {
            val made = generate()
            key.writeText(Signing.toPem(made.private.encoded, "PRIVATE KEY"))
            val itself = extension(BASIC_CONSTRAINTS, true, Der.sequence(Der.element(1, byteArrayOf(-1))))
            certificate.writeText(Signing.toPem(certificate(made.private as ECPrivateKey, made.public.encoded, itself), "CERTIFICATE"))
        }
        maker = Signing.privateKeyFromPem(key.readText())
        root = Signing.fromPem(certificate.readText(), "CERTIFICATE", "maker.pem")
    }

    override fun all(): List<DeviceKey> = keyFiles().map { file ->
        val key = Signing.privateKeyFromPem(file.readText())
        val chain = File(file.path + ".chain").readText().split("\n\n").map { Signing.fromPem(it, "CERTIFICATE", "chain") }
        DeviceKey(Signing.publicKeyOf(key).encoded, key, chain) { freshSignature(key, it) }
    }

    override fun make(challenge: ByteArray): DeviceKey {
        val pair = generate()
        val leaf = certificate(maker, pair.public.encoded, extension(DESCRIPTION, false, description(challenge)))
        val file = File(folder, "${System.nanoTime()}.key")
        File(file.path + ".chain").writeText(listOf(leaf, root).joinToString("\n\n") { Signing.toPem(it, "CERTIFICATE") })
        file.writeText(Signing.toPem(pair.private.encoded, "PRIVATE KEY"))
        return all().first { it.publicKey.contentEquals(pair.public.encoded) }
    }

    override fun keepOnly(publicKey: ByteArray?) {
        for (file in keyFiles()) {
            val key = Signing.publicKeyOf(Signing.privateKeyFromPem(file.readText())).encoded
            if (!key.contentEquals(publicKey)) file.delete()
        }
    }

    private fun keyFiles() = folder.listFiles { file -> file.name.endsWith(".key") }.orEmpty().sortedBy { it.name }

    private fun generate(): KeyPair =
        KeyPairGenerator.getInstance("EC").apply { initialize(ECGenParameterSpec("secp256r1")) }.generateKeyPair()

    /** With a fresh nonce, as hardware does. */
    private fun freshSignature(key: ECPrivateKey, message: ByteArray): ByteArray {
        val der = Signature.getInstance("SHA256withECDSA").run {
            initSign(key)
            update(message)
            sign()
        }
        val numbers = org.bouncycastle.asn1.ASN1Sequence.getInstance(der)
        return (0..1).map { org.bouncycastle.asn1.ASN1Integer.getInstance(numbers.getObjectAt(it)).positiveValue }
            .map { org.bouncycastle.util.BigIntegers.asUnsignedByteArray(32, it) }.reduce(ByteArray::plus)
    }

    private fun description(challenge: ByteArray): ByteArray {
        val (version, tee) = Der.integer(BigInteger.valueOf(300)) to Der.element(0x0a, byteArrayOf(1))
        val octets = Der.element(4, challenge)
        return Der.sequence(version, tee, version, tee, octets, Der.element(4), Der.sequence(), Der.sequence())
    }

    private fun certificate(by: ECPrivateKey, key: ByteArray, extension: ByteArray): ByteArray {
        val year = 365 * 86_400_000L
        val life = listOf(-year, year).map { Der.element(0x17, utc(Date(System.currentTimeMillis() + it)).toByteArray()) }
        val algorithm = Der.sequence(Der.ECDSA_WITH_SHA256)
        val serial = Der.integer(BigInteger(63, SecureRandom()))
        val signed = Der.sequence(
            Der.element(0xa0, Der.integer(BigInteger.valueOf(2))), serial, algorithm, name("a maker"),
            Der.sequence(life[0], life[1]), name("a maker"), key, Der.element(0xa3, Der.sequence(extension)),
        )
        val signature = Signing.der(Signing.signRaw(by, signed))
        return Der.sequence(signed, algorithm, Der.bits(signature))
    }

    private fun utc(date: Date): String =
        SimpleDateFormat("yyMMddHHmmss'Z'", Locale.ROOT).apply { timeZone = TimeZone.getTimeZone("UTC") }.format(date)

    private fun name(text: String) = Der.sequence(Der.set(Der.sequence(Der.COMMON_NAME, Der.text(text))))

    private fun extension(id: ByteArray, critical: Boolean, value: ByteArray): ByteArray {
        val flag = if (critical) Der.element(1, byteArrayOf(-1)) else ByteArray(0)
        return Der.sequence(Der.element(6, id), flag, Der.element(4, value))
    }

    private companion object {
        val BASIC_CONSTRAINTS = byteArrayOf(0x55, 0x1d, 0x13)
        val DESCRIPTION = BigInteger("2b06010401d679020111", 16).toByteArray()
    }
}
