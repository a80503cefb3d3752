package edge.runtime

import edge.ConfigError
import edge.Der
import edge.Identity
import edge.IdentityError
import edge.JsonError
import edge.Registrar
import edge.Signing
import edge.StoreError
import edge.TransportError
import edge.asObject
import edge.asText
import edge.parseJson
import edge.protocol.Topics
import edge.secagg.Suite
import edge.toHex
import java.io.File
import java.io.IOException
import java.io.InputStream
import java.io.RandomAccessFile
import java.math.BigInteger
import java.net.URI
import java.net.URISyntaxException
import java.net.URL
import java.security.SecureRandom
import javax.net.ssl.HttpsURLConnection
import javax.net.ssl.SSLException

/** A device's side of enrolment: a key that never leaves it, a request, and the certificate that comes back. */
public object Enrolment {
    private const val TIMEOUT_MS = 30_000
    private const val ANSWER_MAX_BYTES = 64 * 1024
    private const val OK = 200
    private const val ID_FILE = "requested.id"
    private const val URL_FILE = "registrar.url"
    private const val TOKEN_FILE = "enrolled.by"
    private val ATTEST_DOMAIN = "edge-sdk/attest/1\u0000".toByteArray()
    private val RENEW_DOMAIN = "edge-sdk/renew/1\u0000".toByteArray()

    /**
     * Gets a device's certificate into [folder]; may be called again with the same token after a failure.
     *
     * [url] is the registrar's, https://host[:port]; [token] from the fleet's operator, good for one device; [registrar]
     * the registrar's certificate (PEM), pinned; [id] the id to ask for, a random one where none is given; [now] seconds
     * since the epoch; [keys] where the key is made and stays, a file of the folder by default. An identity that is here already
     * is replaced, once the new one is here: its id may have been revoked. Raises ConfigError: the URL is not https;
     * IdentityError: the registrar refuses; TransportError: it cannot be reached.
     */
    public fun enrol(
        folder: File,
        url: String,
        token: String,
        registrar: String,
        now: Double,
        id: String? = null,
        keys: DeviceKeys = FileKeys(folder),
    ): Identity {
        val challenge = challengeFor(token.toByteArray())
        val certified = if (isEnrolled(folder)) certifiedKey(folder) else null
        // The key is kept before it is asked for: an answer that is lost can be asked for again. An attestation is of one token.
        val noted = File(folder, ID_FILE).takeIf { it.exists() }?.let { Identity.read(it).lines() }.orEmpty()
        val known = keys.all().firstOrNull { !it.publicKey.contentEquals(certified) }
        val reusable = known != null && (known.attestation.isEmpty() || noted.getOrNull(1) == challenge.toHex())
        if (!reusable) {
            val name = id ?: ("d" + ByteArray(8).also(SecureRandom()::nextBytes).toHex())
            keys.keepOnly(certified)
            write(File(folder, ID_FILE), "$name\n${challenge.toHex()}")
        }
        val key = known.takeIf { reusable } ?: keys.make(challenge)
        val name = id ?: Identity.read(File(folder, ID_FILE)).lines()[0]
        val body = mapOf("token" to token, "request" to request(name, key.publicKey, key.sign))
        val certificate = post(url, "/v1/enrol", body + attested(key), Registrar.fromPem(registrar))
        val identity = Identity.of(certificate, registrar, key.privateKey, now, key.sign)
        write(File(folder, Identity.REGISTRAR_FILE), registrar)
        write(File(folder, URL_FILE), url)
        write(File(folder, TOKEN_FILE), challenge.toHex())
        write(File(folder, Identity.CERTIFICATE_FILE), certificate)
        keys.keepOnly(key.publicKey)
        File(folder, ID_FILE).delete()
        return identity
    }

    /** Whether there is a certificate, of whatever worth. */
    internal fun isEnrolled(folder: File): Boolean = File(folder, Identity.CERTIFICATE_FILE).isFile

    /** Whether the identity that is here came by another token than this one; false where that is not known. */
    internal fun isOfAnotherToken(folder: File, token: String): Boolean {
        val (noted, asked) = listOf(TOKEN_FILE, ID_FILE).map { File(folder, it) }
        if (!noted.isFile) return false
        if (Identity.read(noted) != challengeFor(token.toByteArray()).toHex()) return true
        // A crash came before the certificate: the id that was asked for is not the one that is here.
        return asked.isFile && Identity.read(asked).lines()[0] != idOf(folder)
    }

    /** The identity in a folder, with the key that its certificate is of; others are erased. Raises IdentityError. */
    internal fun load(folder: File, now: Double, keys: DeviceKeys): Identity {
        val names = listOf(Identity.CERTIFICATE_FILE, Identity.REGISTRAR_FILE)
        val (certificate, registrar) = names.map { Identity.read(File(folder, it)) }
        val certified = certifiedKey(folder)
        val key = keys.of(certified, idOf(folder))
        // Where a crash came between a new certificate and the end of the old key, this is the end of it.
        keys.keepOnly(certified)
        return Identity.of(certificate, registrar, key.privateKey, now, key.sign)
    }

    /** What an attestation holds, so that it is of this enrolment and no other. */
    private fun challengeFor(secret: ByteArray): ByteArray = Suite.digest(ATTEST_DOMAIN, secret)

    private fun attested(key: DeviceKey): Map<String, String> =
        if (key.attestation.isEmpty()) emptyMap()
        else mapOf("attestation" to key.attestation.joinToString("") { Signing.toPem(it, "CERTIFICATE") })

    private fun certificateOf(folder: File): ByteArray {
        val pem = Identity.read(File(folder, Identity.CERTIFICATE_FILE))
        return Signing.fromPem(pem, "CERTIFICATE", Identity.CERTIFICATE_FILE)
    }

    private fun certifiedKey(folder: File): ByteArray = Registrar.parse(certificateOf(folder)).publicKey.encoded

    private fun idOf(folder: File): String = Registrar.idOf(certificateOf(folder))

    /**
     * The PKCS#10 request (PEM) with which the holder of a P-256 key asks the registrar for a certificate.
     *
     * [publicKey] is SubjectPublicKeyInfo in DER; [sign] gives a raw signature. Raises IdentityError: no id.
     */
    public fun request(id: String, publicKey: ByteArray, sign: (ByteArray) -> ByteArray): String {
        if (!Topics.isId(id)) {
            throw IdentityError("'${id.take(80)}' cannot be an id", "use 1 to 63 of a-z, 0-9 and '-', not beginning with '-'")
        }
        val name = Der.sequence(Der.set(Der.sequence(Der.COMMON_NAME, Der.text(id))))
        val noAttributes = Der.element(0xa0)
        val info = Der.sequence(Der.integer(BigInteger.ZERO), name, publicKey, noAttributes)
        val signature = Der.bits(Signing.der(sign(info)))
        return Signing.toPem(Der.sequence(info, Der.sequence(Der.ECDSA_WITH_SHA256), signature), "CERTIFICATE REQUEST")
    }

    /**
     * Gets a new certificate for a new key; the old ones are replaced once both are here. Raises as [enrol].
     */
    public fun renew(folder: File, now: Double, keys: DeviceKeys = FileKeys(folder)): Identity {
        val url = Identity.read(File(folder, URL_FILE)).trim()
        val registrar = Identity.read(File(folder, Identity.REGISTRAR_FILE))
        val old = Identity.read(File(folder, Identity.CERTIFICATE_FILE))
        val id = idOf(folder)
        val oldKey = keys.of(certifiedKey(folder), id)
        keys.keepOnly(oldKey.publicKey) // what an attempt before this one left
        val key = keys.make(challengeFor(certificateOf(folder)))
        val asked = request(id, key.publicKey, key.sign)
        val proof = oldKey.sign(RENEW_DOMAIN + asked.toByteArray()).toHex()
        val body = mapOf("certificate" to old, "request" to asked, "proof" to proof)
        val certificate = post(url, "/v1/renew", body + attested(key), Registrar.fromPem(registrar))
        val identity = Identity.of(certificate, registrar, key.privateKey, now, key.sign)
        write(File(folder, Identity.CERTIFICATE_FILE), certificate)
        keys.keepOnly(key.publicKey)
        return identity
    }

    /** When two thirds of the certificate's life are over, and [later] of it more; never where nobody enrolled it. */
    internal fun renewalDueAt(folder: File, later: Double): Double {
        if (!isRenewable(folder)) return Double.POSITIVE_INFINITY
        val (begin, end) = lifeOf(folder)
        return begin + (end - begin) * (2.0 / 3 + later)
    }

    /** Whether the certificate can be got anew where it has expired. */
    internal fun isExpired(folder: File, now: Double): Boolean = isRenewable(folder) && now > lifeOf(folder).second

    private fun isRenewable(folder: File) = File(folder, URL_FILE).isFile && File(folder, Identity.CERTIFICATE_FILE).isFile

    private fun lifeOf(folder: File): Pair<Double, Double> {
        val found = Registrar.parse(certificateOf(folder))
        return found.notBefore.time / 1e3 to found.notAfter.time / 1e3
    }

    /** One JSON object for another, over TLS with the pinned registrar's certificate; the certificate in the answer. */
    private fun post(url: String, path: String, body: Map<String, String>, registrar: Registrar): String {
        val connection = try {
            val uri = URI(url)
            if (uri.scheme != "https" || uri.host == null || (uri.path ?: "") !in setOf("", "/")) {
                throw ConfigError("'$url' is no registrar's URL", "write https://host or https://host:port")
            }
            URL("https", uri.host, uri.port, path).openConnection() as HttpsURLConnection
        } catch (error: URISyntaxException) {
            throw ConfigError("'$url' is no registrar's URL", "write https://host or https://host:port", error)
        }
        try {
            connection.sslSocketFactory = Tls.socketFactory(registrar)
            connection.connectTimeout = TIMEOUT_MS
            connection.readTimeout = TIMEOUT_MS
            connection.doOutput = true
            connection.setRequestProperty("Content-Type", "application/json")
            connection.outputStream.use { it.write(json(body).toByteArray()) }
            val status = connection.responseCode
            val content = (if (status == OK) connection.inputStream else connection.errorStream)?.use(::limited) ?: ""
            val answer = parseJson(content).asObject("the answer")
            if (status != OK) {
                throw IdentityError(
                    "the registrar refused: ${answer["error"]?.asText("error")?.take(500) ?: status}",
                    answer["hint"]?.asText("hint")?.take(500).orEmpty(),
                )
            }
            return (answer["certificate"] ?: throw JsonError("it holds no certificate")).asText("certificate")
        } catch (error: SSLException) {
            throw TransportError("what answers at $url does not prove that it is the registrar", "check the URL", error)
        } catch (error: IOException) {
            throw TransportError("cannot reach the registrar at $url: ${error.message}", "check URL and network", error)
        } catch (error: JsonError) {
            throw TransportError("what answers at $url is no registrar: ${error.message}", "check the URL", error)
        } finally {
            connection.disconnect()
        }
    }

    private fun limited(input: InputStream): String {
        val content = ByteArray(ANSWER_MAX_BYTES)
        var size = 0
        while (size < content.size) {
            val read = input.read(content, size, content.size - size)
            if (read < 0) return String(content, 0, size, Charsets.UTF_8)
            size += read
        }
        throw IOException("an answer that is too long")
    }

    private fun json(body: Map<String, String>): String = body.entries.joinToString(",", "{", "}") { (name, value) ->
        val escaped = value.map { c -> if (c < ' ' || c > '~' || c == '"' || c == '\\') unicode(c) else c.toString() }
        "\"$name\":\"${escaped.joinToString("")}\""
    }

    private fun unicode(c: Char): String = "\\u" + c.code.toString(16).padStart(4, '0')

    /** Writes a file for its owner only, whole or not at all. */
    internal fun write(file: File, text: String) {
        try {
            file.absoluteFile.parentFile?.mkdirs()
            val part = File(file.path + ".part")
            part.delete()
            part.createNewFile()
            RecordFile.makePrivate(part)
            RandomAccessFile(part, "rw").use {
                it.write(text.toByteArray())
                it.fd.sync()
            }
            if (!part.renameTo(file)) throw IOException("it cannot be renamed")
        } catch (error: IOException) {
            throw StoreError("cannot write $file: ${error.message}", "check the folder's permissions", error)
        }
    }
}
