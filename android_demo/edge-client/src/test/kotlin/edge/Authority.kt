package edge

import edge.secagg.Suite
import java.math.BigInteger
import java.security.KeyPair
import java.security.KeyPairGenerator
import java.security.Signature
import java.security.interfaces.ECPrivateKey
import java.security.spec.ECGenParameterSpec
import java.util.Date
import org.bouncycastle.asn1.ASN1EncodableVector
import org.bouncycastle.asn1.ASN1Integer
import org.bouncycastle.asn1.ASN1ObjectIdentifier
import org.bouncycastle.asn1.DERBitString
import org.bouncycastle.asn1.DERSequence
import org.bouncycastle.asn1.x500.X500Name
import org.bouncycastle.asn1.x509.AlgorithmIdentifier
import org.bouncycastle.asn1.x509.BasicConstraints
import org.bouncycastle.asn1.x509.Extension
import org.bouncycastle.asn1.x509.Extensions
import org.bouncycastle.asn1.x509.SubjectPublicKeyInfo
import org.bouncycastle.asn1.x509.Time
import org.bouncycastle.asn1.x509.V3TBSCertificateGenerator

/** A registrar of the tests: certificates for whoever is named, valid from a day before [now] to 90 days after. */
internal class Authority(private val now: Double) {
    private val key = newKey()
    private val name = X500Name("CN=test registrar")
    private val certificate = certified(name, key, isCa = true, days = 90)
    val pem: String get() = Signing.toPem(certificate, "CERTIFICATE")

    /** A key with a certificate in a role. */
    class Member(val id: String, val key: KeyPair, val certificate: Bytes) {
        fun sign(message: ByteArray): ByteArray = Signing.signRaw(key.private as ECPrivateKey, message)
    }

    fun member(id: String, role: String, days: Int = 90): Member {
        val made = newKey()
        return Member(id, made, Bytes(certified(X500Name("OU=$role,CN=$id"), made, isCa = false, days = days)))
    }

    fun identity(member: Member): Identity = Identity.of(
        Signing.toPem(member.certificate.array, "CERTIFICATE"),
        pem,
        member.key.private,
        now,
        member::sign,
    )

    private fun newKey(): KeyPair = KeyPairGenerator.getInstance("EC").run {
        initialize(ECGenParameterSpec("secp256r1"))
        generateKeyPair()
    }

    private fun certified(subject: X500Name, holder: KeyPair, isCa: Boolean, days: Int): ByteArray {
        val algorithm = AlgorithmIdentifier(ASN1ObjectIdentifier("1.2.840.10045.4.3.2"))
        val content = V3TBSCertificateGenerator().run {
            setSerialNumber(ASN1Integer(BigInteger(1, Suite.digest(holder.public.encoded).copyOf(8))))
            setSignature(algorithm)
            setIssuer(name)
            setSubject(subject)
            setStartDate(Time(Date(((now - 86_400) * 1e3).toLong())))
            setEndDate(Time(Date(((now + days * 86_400.0) * 1e3).toLong())))
            setSubjectPublicKeyInfo(SubjectPublicKeyInfo.getInstance(holder.public.encoded))
            val constraints = if (isCa) BasicConstraints(0) else BasicConstraints(false)
            setExtensions(Extensions(Extension(Extension.basicConstraints, true, constraints.encoded)))
            generateTBSCertificate()
        }
        val signature = Signature.getInstance("SHA256withECDSA").run {
            initSign(key.private)
            update(content.encoded)
            sign()
        }
        val parts = ASN1EncodableVector().apply { listOf(content, algorithm, DERBitString(signature)).forEach(::add) }
        return DERSequence(parts).encoded
    }
}
