package edge.android

import android.security.keystore.KeyGenParameterSpec
import android.security.keystore.KeyProperties
import edge.IdentityError
import edge.runtime.DeviceKey
import edge.runtime.DeviceKeys
import java.security.GeneralSecurityException
import java.security.KeyPairGenerator
import java.security.KeyStore
import java.security.PrivateKey
import java.security.ProviderException
import java.security.Signature
import java.security.spec.ECGenParameterSpec
import javax.crypto.KeyGenerator
import javax.crypto.SecretKey

/**
 * The phone's hardware-backed keys: they can be used, and never read, by this app alone.
 *
 * @property alias under which the Keystore has them, with `.storage`, `.identity.1` and `.identity.2` after it.
 */
public class KeystoreKeys(private val alias: String) {
    private val keystore: KeyStore = KeyStore.getInstance(PROVIDER).apply { load(null) }

    /** The key of [SealedFiles]; made on first use. */
    public fun storageKey(): SecretKey =
        keystore.getKey("$alias.storage", null) as SecretKey? ?: makeStorageKey()

    /** The device's signing keys, P-256: made in the hardware, which attests to them where it can. */
    public val identityKeys: DeviceKeys = object : DeviceKeys {
        override fun all(): List<DeviceKey> = guarded { names().map(::read) }

        override fun make(challenge: ByteArray): DeviceKey = guarded {
            val name = NAMES.map { "$alias.identity.$it" }.first { it !in names() }
            try {
                generateIdentity(name, challenge)
            } catch (_: ProviderException) {
                // Old hardware, or one whose attestation keys were never provisioned: the registrar decides whether that will do.
                generateIdentity(name, null)
            }
            read(name)
        }

        override fun keepOnly(publicKey: ByteArray?) = guarded {
            for (name in names()) {
                if (!keystore.getCertificate(name).publicKey.encoded.contentEquals(publicKey)) keystore.deleteEntry(name)
            }
        }

        private fun names() = NAMES.map { "$alias.identity.$it" }.filter(keystore::containsAlias)

        private fun read(name: String): DeviceKey {
            val chain = keystore.getCertificateChain(name).map { it.encoded }
            val key = keystore.getKey(name, null) as PrivateKey
            // A certificate that stands alone is signed by nobody, and attests to nothing.
            return DeviceKey(keystore.getCertificate(name).publicKey.encoded, key, if (chain.size > 1) chain else emptyList()) {
                guarded { sign(key, it) }
            }
        }
    }

    /** The hardware draws a fresh nonce for each signature; what was said is kept to be said again. */
    private fun sign(key: PrivateKey, message: ByteArray): ByteArray = RawSignature.fromDer(
        Signature.getInstance("SHA256withECDSA").run {
            initSign(key)
            update(message)
            sign()
        },
    )

    private fun <T> guarded(action: () -> T): T = try {
        action()
    } catch (error: GeneralSecurityException) {
        throw IdentityError("this phone's Keystore cannot use the key of this device: $error", KEY_LOST, error)
    } catch (error: ProviderException) {
        throw IdentityError("this phone's Keystore failed: $error", KEY_LOST, error)
    }

    /** Forget all keys. What was sealed with the storage key cannot be read again, by anybody. */
    public fun erase() {
        identityKeys.keepOnly(null)
        if (keystore.containsAlias("$alias.storage")) keystore.deleteEntry("$alias.storage")
    }

    private fun makeStorageKey(): SecretKey {
        val purposes = KeyProperties.PURPOSE_ENCRYPT or KeyProperties.PURPOSE_DECRYPT
        val generator = KeyGenerator.getInstance(KeyProperties.KEY_ALGORITHM_AES, PROVIDER)
        generator.init(
            KeyGenParameterSpec.Builder("$alias.storage", purposes)
                .setBlockModes(KeyProperties.BLOCK_MODE_GCM)
                .setEncryptionPaddings(KeyProperties.ENCRYPTION_PADDING_NONE)
                .setKeySize(256)
                .build(),
        )
        return generator.generateKey()
    }

    private fun generateIdentity(name: String, challenge: ByteArray?) {
        val generator = KeyPairGenerator.getInstance(KeyProperties.KEY_ALGORITHM_EC, PROVIDER)
        generator.initialize(
            KeyGenParameterSpec.Builder(name, KeyProperties.PURPOSE_SIGN)
                .setAlgorithmParameterSpec(ECGenParameterSpec("secp256r1"))
                // TLS hands over what it has hashed already.
                .setDigests(KeyProperties.DIGEST_SHA256, KeyProperties.DIGEST_NONE)
                .apply { if (challenge != null) setAttestationChallenge(challenge) }
                .build(),
        )
        generator.generateKeyPair()
    }

    private companion object {
        const val PROVIDER = "AndroidKeyStore"
        const val KEY_LOST = "enrol this device again, with a new token"

        /** Two places: while a new certificate is asked for there are two keys. */
        val NAMES = listOf("1", "2")
    }
}
