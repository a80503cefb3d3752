package edge.runtime

import edge.Identity
import edge.IdentityError
import edge.Signing
import edge.StoreError
import edge.training.FileKey
import java.io.File
import java.security.KeyPairGenerator
import java.security.PrivateKey
import java.security.interfaces.ECPrivateKey
import java.security.spec.ECGenParameterSpec

/**
 * A signing key of the device's own, on P-256.
 *
 * [publicKey] is SubjectPublicKeyInfo in DER. [privateKey] serves mutual TLS, and may be a handle to a key that cannot be
 * read. [attestation] is what the hardware says of the key, certificates in DER, leaf first; empty where nothing does. [sign]
 * gives a raw signature (r, s) of a message.
 */
public class DeviceKey(
    public val publicKey: ByteArray,
    public val privateKey: PrivateKey,
    public val attestation: List<ByteArray> = emptyList(),
    public val sign: (ByteArray) -> ByteArray,
)

/** Where the device's signing keys are: the one that its certificate is of, and one for which it asks for another. */
public interface DeviceKeys {
    /** All that there are. Raises IdentityError: one cannot be read. */
    public fun all(): List<DeviceKey>

    /** Makes another key; what attests to it holds [challenge]. Raises StoreError or IdentityError: it cannot be made. */
    public fun make(challenge: ByteArray): DeviceKey

    /** Erases all keys but the one whose public half this is; all of them where it is null. Raises StoreError. */
    public fun keepOnly(publicKey: ByteArray?)
}

/** Keys in files of the identity's folder, as the Python device has them: `identity.key`, and `next.key` for the next. */
internal class FileKeys(folder: File) : DeviceKeys {
    private val own = File(folder, Identity.KEY_FILE)
    private val next = File(folder, NEXT_FILE)

    override fun all(): List<DeviceKey> = listOf(own, next).filter { it.exists() }.map(::read)

    override fun make(challenge: ByteArray): DeviceKey {
        val generator = KeyPairGenerator.getInstance("EC")
        generator.initialize(ECGenParameterSpec("secp256r1"))
        val file = if (own.exists()) next else own
        Enrolment.write(file, Signing.toPem(generator.generateKeyPair().private.encoded, "PRIVATE KEY"))
        return read(file)
    }

    override fun keepOnly(publicKey: ByteArray?) {
        if (publicKey != null && next.exists() && read(next).publicKey.contentEquals(publicKey)) {
            if (!next.renameTo(own)) throw StoreError("$next cannot be renamed", "check the folder's permissions")
            return
        }
        FileKey(next).erase()
        if (publicKey == null) FileKey(own).erase()
    }

    private fun read(file: File): DeviceKey {
        val key: ECPrivateKey = Signing.privateKeyFromPem(Identity.read(file), file.name)
        return DeviceKey(Signing.publicKeyOf(key).encoded, key) { Signing.signRaw(key, it) }
    }

    private companion object {
        const val NEXT_FILE = "next.key"
    }
}

/** The key that a certificate is of. Raises IdentityError: it is not here. */
internal fun DeviceKeys.of(certified: ByteArray, id: String): DeviceKey =
    all().firstOrNull { it.publicKey.contentEquals(certified) } ?: throw IdentityError(
        "the private key of '$id' is not on this device",
        "put the key beside the certificate that was issued for it, or enrol with a new token",
    )
