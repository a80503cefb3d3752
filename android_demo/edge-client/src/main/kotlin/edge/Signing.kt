package edge

import edge.secagg.Suite
import java.math.BigInteger
import java.security.AlgorithmParameters
import java.security.GeneralSecurityException
import java.security.KeyFactory
import java.security.PublicKey
import java.security.Signature
import java.security.interfaces.ECPrivateKey
import java.security.interfaces.ECPublicKey
import java.security.spec.ECFieldFp
import java.security.spec.ECGenParameterSpec
import java.security.spec.ECParameterSpec
import java.security.spec.ECPublicKeySpec
import java.security.spec.PKCS8EncodedKeySpec
import java.security.spec.X509EncodedKeySpec
import java.util.Base64
import org.bouncycastle.crypto.digests.SHA256Digest
import org.bouncycastle.crypto.params.ECDomainParameters
import org.bouncycastle.crypto.params.ECPrivateKeyParameters
import org.bouncycastle.crypto.signers.ECDSASigner
import org.bouncycastle.crypto.signers.HMacDSAKCalculator
import org.bouncycastle.math.ec.custom.sec.SecP256R1Curve

/**
 * ECDSA on P-256 with SHA-256: raw signatures of 64 bytes, r then s, big-endian; deterministic (RFC 6979).
 *
 * A key is checked to lie on P-256 where it comes in, here; so what is an [ECPublicKey] elsewhere is good.
 */
public object Signing {
    public const val SIGNATURE_BYTES: Int = 64
    private const val COORDINATE_BYTES = 32

    /** The platform's parameters of P-256. */
    internal val p256: ECParameterSpec = AlgorithmParameters.getInstance("EC").run {
        init(ECGenParameterSpec("secp256r1"))
        getParameterSpec(ECParameterSpec::class.java)
    }

    // By its class: Bouncy Castle's table of named curves would bring all of them into an app.
    private val curve = SecP256R1Curve()
    private val domain = p256.generator.run {
        ECDomainParameters(curve, curve.createPoint(affineX, affineY), curve.order, curve.cofactor)
    }

    /** Signs SHA-256 of [message]; 64 bytes, the same each time. */
    public fun signRaw(privateKey: ECPrivateKey, message: ByteArray): ByteArray {
        val signer = ECDSASigner(HMacDSAKCalculator(SHA256Digest()))
        signer.init(true, ECPrivateKeyParameters(privateKey.s, domain))
        val (r, s) = signer.generateSignature(Suite.digest(message))
        return coordinate(r) + coordinate(s)
    }

    /** Whether [signature] is this key's signature of [message]; malformed ones are not. */
    public fun verifyRaw(publicKey: ECPublicKey, signature: ByteArray, message: ByteArray): Boolean {
        if (signature.size != SIGNATURE_BYTES) return false
        val r = BigInteger(1, signature.copyOfRange(0, COORDINATE_BYTES))
        val s = BigInteger(1, signature.copyOfRange(COORDINATE_BYTES, SIGNATURE_BYTES))
        if (r.signum() == 0 || s.signum() == 0 || r >= curve.order || s >= curve.order) return false
        return try {
            val verifier = Signature.getInstance("SHA256withECDSA")
            verifier.initVerify(publicKey)
            verifier.update(message)
            verifier.verify(der(r, s))
        } catch (_: GeneralSecurityException) {
            false
        }
    }

    /** The name of a public key: SHA-256 of its SubjectPublicKeyInfo in DER, 32 bytes. */
    public fun keyId(publicKey: ECPublicKey): ByteArray = Suite.digest(publicKey.encoded)

    /** Reads a P-256 public key (SubjectPublicKeyInfo PEM); [source] names it in errors. Raises IdentityError. */
    public fun publicKeyFromPem(pem: String, source: String = "public key"): ECPublicKey {
        val key = try {
            KeyFactory.getInstance("EC").generatePublic(X509EncodedKeySpec(fromPem(pem, "PUBLIC KEY", source)))
        } catch (error: GeneralSecurityException) {
            throw IdentityError("$source is not an elliptic-curve public key", "use an EC P-256 key", error)
        }
        return onP256(key) ?: throw IdentityError("$source is not a key on P-256", "use an EC P-256 key")
    }

    /** Reads an unencrypted P-256 private key (PKCS#8 PEM); [source] names it in errors. Raises IdentityError. */
    public fun privateKeyFromPem(pem: String, source: String = "private key"): ECPrivateKey {
        val key = try {
            KeyFactory.getInstance("EC").generatePrivate(PKCS8EncodedKeySpec(fromPem(pem, "PRIVATE KEY", source)))
        } catch (error: GeneralSecurityException) {
            throw IdentityError("$source is not an elliptic-curve private key", "use an EC P-256 key", error)
        }
        if (key !is ECPrivateKey || !isP256(key.params) || key.s.signum() < 1 || key.s >= curve.order) {
            throw IdentityError("$source is not a key on P-256", "use an EC P-256 key")
        }
        return key
    }

    /** The public key that belongs to a private one. */
    public fun publicKeyOf(privateKey: ECPrivateKey): ECPublicKey {
        val point = domain.g.multiply(privateKey.s).normalize()
        val w = java.security.spec.ECPoint(point.affineXCoord.toBigInteger(), point.affineYCoord.toBigInteger())
        return KeyFactory.getInstance("EC").generatePublic(ECPublicKeySpec(w, p256)) as ECPublicKey
    }

    /** The key, if it is on P-256, the point on the curve and not at infinity; else null. */
    internal fun onP256(key: PublicKey): ECPublicKey? {
        if (key !is ECPublicKey || !isP256(key.params)) return null
        val p = (p256.curve.field as ECFieldFp).p
        val x = key.w.affineX ?: return null
        val y = key.w.affineY ?: return null
        if (x.signum() < 0 || x >= p || y.signum() < 0 || y >= p) return null
        val right = x.pow(3).add(p256.curve.a.multiply(x)).add(p256.curve.b).mod(p)
        return if (y.pow(2).mod(p) == right) key else null
    }

    private fun isP256(parameters: ECParameterSpec): Boolean =
        parameters.curve.field == p256.curve.field && parameters.curve.a == p256.curve.a &&
            parameters.curve.b == p256.curve.b && parameters.generator == p256.generator &&
            parameters.order == p256.order && parameters.cofactor == p256.cofactor

    /** The DER bytes of the first block of this kind in PEM text. */
    internal fun fromPem(pem: String, kind: String, source: String): ByteArray {
        val begin = "-----BEGIN $kind-----"
        val from = pem.indexOf(begin)
        val to = pem.indexOf("-----END $kind-----")
        if (from < 0 || to < from) {
            throw IdentityError("$source is not PEM with a $kind", "pass the file that begins with $begin")
        }
        return try {
            Base64.getMimeDecoder().decode(pem.substring(from + begin.length, to).trim())
        } catch (error: IllegalArgumentException) {
            throw IdentityError("$source is damaged PEM", "copy the file again", error)
        }
    }

    /** PEM text of DER bytes. */
    internal fun toPem(der: ByteArray, kind: String): String {
        val body = Base64.getMimeEncoder(64, "\n".toByteArray()).encodeToString(der)
        return "-----BEGIN $kind-----\n$body\n-----END $kind-----\n"
    }

    private fun coordinate(value: BigInteger): ByteArray {
        val bytes = value.toByteArray() // with a sign byte where the top bit is set, shorter where it begins with zeros
        val fixed = ByteArray(COORDINATE_BYTES)
        val count = minOf(bytes.size, COORDINATE_BYTES)
        bytes.copyInto(fixed, COORDINATE_BYTES - count, bytes.size - count)
        return fixed
    }

    /** A raw signature in DER, as certificates and their requests have it. */
    internal fun der(raw: ByteArray): ByteArray =
        der(BigInteger(1, raw.copyOfRange(0, COORDINATE_BYTES)), BigInteger(1, raw.copyOfRange(COORDINATE_BYTES, SIGNATURE_BYTES)))

    private fun der(r: BigInteger, s: BigInteger): ByteArray = Der.sequence(Der.integer(r), Der.integer(s))
}
