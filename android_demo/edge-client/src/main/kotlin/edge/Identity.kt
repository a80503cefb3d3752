package edge

import edge.protocol.Limits
import edge.protocol.Topics
import java.io.ByteArrayInputStream
import java.io.File
import java.io.IOException
import java.security.GeneralSecurityException
import java.security.PrivateKey
import java.security.cert.CertificateException
import java.security.cert.CertificateFactory
import java.security.cert.X509Certificate
import java.security.interfaces.ECPublicKey

/** What a peer's certificate must say that it is. */
public enum class Role(internal val unit: String) { DEVICE("device"), COORDINATOR("coordinator"), BROKER("broker") }

/** A peer whose certificate the registrar signed and that is valid now: its id and its P-256 key. */
public class VerifiedPeer internal constructor(public val id: String, public val publicKey: ECPublicKey)

/**
 * The registrar, whose certificate is pinned: it vouches for everybody else (PROTOCOL.md 2).
 *
 * The check is made for bytes from outside: bounded, authenticated by the registrar's signature, and only then read.
 */
public class Registrar(public val certificate: X509Certificate) {
    private val known = object : LinkedHashMap<Bytes, Leaf>(64, 0.75f, true) {
        override fun removeEldestEntry(eldest: Map.Entry<Bytes, Leaf>): Boolean = size > REMEMBERED
    }

    /**
     * Checks that the registrar vouches for a peer in a role, at [now], seconds since the epoch.
     *
     * Raises IdentityError: too large, not a certificate, not issued by this registrar, a CA certificate, without a
     * proper id or P-256 key, for another role, expired, or not yet valid.
     */
    public fun verify(der: Bytes, role: Role, now: Double): VerifiedPeer {
        if (der.size > Limits.CERTIFICATE_MAX_BYTES) {
            throw IdentityError("a certificate of ${der.size} bytes is over the limit of ${Limits.CERTIFICATE_MAX_BYTES}")
        }
        val leaf = authentic(der)
        if (leaf.roles != listOf(role.unit)) {
            throw IdentityError(
                "the certificate of '${leaf.id}' is for the role ${leaf.roles.joinToString("+")}, not ${role.unit}",
                "have one issued with: edge registrar issue --role ${role.unit}",
            )
        }
        if (now > leaf.notAfter) {
            throw IdentityError(
                "the certificate of '${leaf.id}' expired",
                "have a new one issued with: edge registrar issue",
            )
        }
        if (now < leaf.notBefore) {
            throw IdentityError("the certificate of '${leaf.id}' is not valid yet", "check this device's clock")
        }
        return VerifiedPeer(leaf.id, leaf.publicKey)
    }

    /** What the signature covers is remembered for the last few thousand; a failure is not. */
    private fun authentic(der: Bytes): Leaf {
        synchronized(known) { known[der]?.let { return it } }
        val leaf = try {
            read(der)
        } catch (error: GeneralSecurityException) {
            throw IdentityError("a certificate cannot be read or does not bear the registrar's signature", REGISTRAR, error)
        } catch (error: IllegalArgumentException) {
            throw IdentityError("a certificate cannot be read", REGISTRAR, error)
        }
        synchronized(known) { known[der] = leaf }
        return leaf
    }

    private fun read(der: Bytes): Leaf {
        val found = parse(der.array)
        if (found.issuerX500Principal != certificate.subjectX500Principal) {
            throw IdentityError("a certificate was issued by '${found.issuerX500Principal}', not by the registrar", REGISTRAR)
        }
        if (found.sigAlgOID != ECDSA_WITH_SHA256) throw IdentityError("a certificate is not signed with ECDSA and SHA-256")
        found.verify(certificate.publicKey)
        val unknown = found.criticalExtensionOIDs.orEmpty() - UNDERSTOOD_EXTENSIONS
        if (unknown.isNotEmpty()) throw IdentityError("a certificate has the unknown critical extension ${unknown.first()}")
        if (found.getExtensionValue(BASIC_CONSTRAINTS) == null) {
            throw IdentityError("a certificate does not say whether it is a CA's")
        }
        if (found.basicConstraints >= 0) throw IdentityError("a CA certificate stands where a leaf certificate belongs")
        val subject = found.subjectX500Principal.encoded
        val names = Der.valuesOf(subject, Der.COMMON_NAME)
        if (names.size != 1) throw IdentityError("a certificate has ${names.size} common names, not one")
        val id = names.single()
        if (!Topics.isId(id)) {
            throw IdentityError("'${id.take(80)}' cannot be an id", "use 1 to 63 of a-z, 0-9 and '-', not beginning with '-'")
        }
        val key = Signing.onP256(found.publicKey) ?: throw IdentityError("the certificate of '$id' is not for a P-256 key")
        return Leaf(id, Der.valuesOf(subject, Der.ORGANISATIONAL_UNIT), key, found.notBefore.time / 1e3, found.notAfter.time / 1e3)
    }

    /** What an authentic certificate says, before the questions that depend on the asker. */
    private class Leaf(
        val id: String,
        val roles: List<String>,
        val publicKey: ECPublicKey,
        val notBefore: Double,
        val notAfter: Double,
    )

    public companion object {
        private const val REMEMBERED = 4096
        private const val REGISTRAR = "both ends must use certificates of the same registrar"
        private const val ECDSA_WITH_SHA256 = "1.2.840.10045.4.3.2"
        private const val BASIC_CONSTRAINTS = "2.5.29.19"
        private val UNDERSTOOD_EXTENSIONS =
            setOf(BASIC_CONSTRAINTS, "2.5.29.15", "2.5.29.37", "2.5.29.17", "2.5.29.14", "2.5.29.35")

        /** The one certificate that the bytes are, to the last of them. */
        internal fun parse(der: ByteArray): X509Certificate {
            val factory = CertificateFactory.getInstance("X.509")
            val found = factory.generateCertificate(ByteArrayInputStream(der)) as X509Certificate
            if (!found.encoded.contentEquals(der)) throw CertificateException("bytes follow the certificate")
            return found
        }

        /** The id that a certificate names; whether it is to be believed is not asked here. */
        internal fun idOf(der: ByteArray): String {
            val names = Der.valuesOf(parse(der).subjectX500Principal.encoded, Der.COMMON_NAME)
            return names.singleOrNull() ?: throw IdentityError("a certificate names no one id")
        }

        /** Reads the pinned registrar's certificate from PEM; [source] names it in errors. Raises IdentityError. */
        public fun fromPem(pem: String, source: String = "registrar.crt"): Registrar {
            val certificate = try {
                parse(Signing.fromPem(pem, "CERTIFICATE", source))
            } catch (error: CertificateException) {
                throw IdentityError("$source is not a certificate", "pass the registrar's certificate", error)
            }
            if (certificate.basicConstraints < 0) {
                throw IdentityError(
                    "$source is not a registrar's certificate but one of a leaf",
                    "use the registrar.crt that edge registrar init made",
                )
            }
            if (certificate.publicKey !is ECPublicKey) throw IdentityError("$source has no elliptic-curve key")
            return Registrar(certificate)
        }
    }
}

/**
 * This device's own key and certificate, and the registrar it trusts.
 *
 * [certificate] is DER, as it goes into messages; [privateKey] serves mutual TLS, and may be a handle to a key that cannot
 * be read, as a phone's hardware has; [signer] gives the raw 64-byte signature (r, s) of a message.
 */
public class Identity private constructor(
    public val id: String,
    public val certificate: Bytes,
    public val registrar: Registrar,
    internal val privateKey: PrivateKey,
    private val signer: (ByteArray) -> ByteArray,
) {
    /** The certificate, for TLS. */
    internal val leaf: X509Certificate get() = Registrar.parse(certificate.array)

    /** The raw 64-byte signature of a message; the same bytes each time where the key can be read (RFC 6979). */
    public fun sign(message: ByteArray): ByteArray = signer(message)

    override fun toString(): String = "Identity($id)"

    public companion object {
        private val CHECKED = "edge-sdk/own-key/1\u0000".toByteArray()

        /**
         * Puts an identity together, checked as a peer would check it at [now], seconds since the epoch.
         *
         * [certificate] and [registrar] are PEM. Raises IdentityError: a text cannot be read, key and certificate do not
         * belong together, or what [Registrar.verify] raises.
         */
        public fun of(
            certificate: String,
            registrar: String,
            privateKey: PrivateKey,
            now: Double,
            sign: (ByteArray) -> ByteArray,
        ): Identity {
            val authority = Registrar.fromPem(registrar)
            val der = Bytes(Signing.fromPem(certificate, "CERTIFICATE", "identity.crt"))
            val peer = authority.verify(der, Role.DEVICE, now)
            if (!Signing.verifyRaw(peer.publicKey, sign(CHECKED), CHECKED)) {
                throw IdentityError(
                    "the private key does not belong to the certificate of '${peer.id}'",
                    "put the key beside the certificate that was issued for it, or have a new one issued",
                )
            }
            return Identity(peer.id, der, authority, privateKey, sign)
        }

        /** The same from a key as PEM (PKCS#8). */
        public fun fromPem(key: String, certificate: String, registrar: String, now: Double): Identity {
            val private = Signing.privateKeyFromPem(key, "identity.key")
            return of(certificate, registrar, private, now) { Signing.signRaw(private, it) }
        }

        /** Reads `identity.key`, `identity.crt` and `registrar.crt` in a folder; raises IdentityError. */
        public fun load(folder: File, now: Double): Identity {
            val (key, certificate, registrar) = FILES.map { name -> read(File(folder, name)) }
            return fromPem(key, certificate, registrar, now)
        }

        internal const val KEY_FILE: String = "identity.key"
        internal const val CERTIFICATE_FILE: String = "identity.crt"
        internal const val REGISTRAR_FILE: String = "registrar.crt"
        private val FILES = listOf(KEY_FILE, CERTIFICATE_FILE, REGISTRAR_FILE)

        internal fun read(file: File): String = try {
            file.readText()
        } catch (error: IOException) {
            throw IdentityError("cannot read $file", "enrol the device, or put the registrar's files there", error)
        }
    }
}
