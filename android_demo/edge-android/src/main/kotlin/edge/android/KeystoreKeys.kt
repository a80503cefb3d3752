package edge.android

import android.security.keystore.KeyGenParameterSpec
import android.security.keystore.KeyProperties
import java.security.GeneralSecurityException
import java.security.KeyPairGenerator
import java.security.KeyStore
import java.security.PrivateKey
import java.security.ProviderException
import java.security.Signature
import java.security.cert.X509Certificate
import java.security.spec.ECGenParameterSpec
import javax.crypto.KeyGenerator
import javax.crypto.SecretKey

/**
 * The phone's hardware-backed keys: they can be used, and never read, by this app alone.
 *
 * @property alias under which the Keystore has them, with `.storage` and `.identity` after it.
 */
public class KeystoreKeys(private val alias: String) {
    private val keystore: KeyStore = KeyStore.getInstance(PROVIDER).apply { load(null) }

    /** The key of [SealedFiles]; made on first use. */
    public fun storageKey(): SecretKey =
        keystore.getKey("$alias.storage", null) as SecretKey? ?: makeStorageKey()

    /**
     * Make the device's signing key, P-256, in place of one that may be there.
     *
     * @param challenge the registrar's, for the attestation; null asks for none.
     * @return the attestation chain, leaf first, for the enrolment request. Where the hardware attests nothing it holds
     *   one certificate that proves nothing, and the registrar decides whether that will do.
     */
    public fun makeIdentity(challenge: ByteArray?): List<X509Certificate> {
        try {
            generateIdentity(challenge)
        } catch (error: ProviderException) {
            // Old hardware, or one whose attestation keys were never provisioned.
            if (challenge == null) throw error
            generateIdentity(null)
        }
        return keystore.getCertificateChain("$alias.identity").map { it as X509Certificate }
    }

    /** The device's public key, as SubjectPublicKeyInfo in DER; null before [makeIdentity]. */
    public fun identityPublicKey(): ByteArray? = keystore.getCertificate("$alias.identity")?.publicKey?.encoded

    /**
     * Sign with the device's key: ECDSA P-256 over SHA-256, r||s.
     *
     * The hardware draws a fresh nonce for each, so the same message has another signature every time: what was sent must
     * be kept to be said again.
     *
     * @throws GeneralSecurityException the key is gone.
     */
    public fun sign(message: ByteArray): ByteArray {
        val key = keystore.getKey("$alias.identity", null) as PrivateKey?
            ?: throw GeneralSecurityException("this phone has no identity '$alias': enrol it first")
        return RawSignature.fromDer(
            Signature.getInstance("SHA256withECDSA").run {
                initSign(key)
                update(message)
                sign()
            },
        )
    }

    /** Forget both keys. What was sealed with the storage key cannot be read again, by anybody. */
    public fun erase() {
        for (name in listOf("$alias.storage", "$alias.identity")) {
            if (keystore.containsAlias(name)) keystore.deleteEntry(name)
        }
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

    private fun generateIdentity(challenge: ByteArray?) {
        val generator = KeyPairGenerator.getInstance(KeyProperties.KEY_ALGORITHM_EC, PROVIDER)
        generator.initialize(
            KeyGenParameterSpec.Builder("$alias.identity", KeyProperties.PURPOSE_SIGN)
                .setAlgorithmParameterSpec(ECGenParameterSpec("secp256r1"))
                .setDigests(KeyProperties.DIGEST_SHA256)
                .apply { if (challenge != null) setAttestationChallenge(challenge) }
                .build(),
        )
        generator.generateKeyPair()
    }

    private companion object {
        const val PROVIDER = "AndroidKeyStore"
    }
}
