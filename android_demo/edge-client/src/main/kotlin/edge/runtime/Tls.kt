package edge.runtime

import edge.ConfigError
import edge.Identity
import edge.Registrar
import edge.Unreachable
import java.net.Socket
import java.security.GeneralSecurityException
import java.security.KeyStore
import java.security.Principal
import java.security.PrivateKey
import java.security.cert.X509Certificate
import java.util.Locale
import javax.net.ssl.SSLContext
import javax.net.ssl.SSLEngine
import javax.net.ssl.SSLSocketFactory
import javax.net.ssl.TrustManagerFactory
import javax.net.ssl.X509ExtendedKeyManager

/** TLS to who has a certificate by the registrar, and nobody else; mutual where this device has one. */
public object Tls {
    /** Makes sockets that show this device's certificate; raises ConfigError where the platform cannot. */
    public fun socketFactory(identity: Identity): SSLSocketFactory =
        factory(identity.registrar, OwnKey(identity.privateKey, identity.leaf))

    /** Makes sockets for a device that has no certificate yet. */
    internal fun socketFactory(registrar: Registrar): SSLSocketFactory = factory(registrar, null)

    private fun factory(registrar: Registrar, own: OwnKey?): SSLSocketFactory = try {
        val trusted = KeyStore.getInstance(KeyStore.getDefaultType()).apply { load(null) }
        trusted.setCertificateEntry("registrar", registrar.certificate)
        val trust = TrustManagerFactory.getInstance(TrustManagerFactory.getDefaultAlgorithm())
        trust.init(trusted)
        val context = SSLContext.getInstance("TLS")
        context.init(own?.let { arrayOf(it) }, trust.trustManagers, null)
        context.socketFactory
    } catch (error: GeneralSecurityException) {
        throw ConfigError("this platform cannot do TLS with the device's identity", cause = error)
    }

    /**
     * Why no connection came about, as [Unreachable] has it: a word, and a sentence.
     *
     * What a broker says of this side's certificate is an alert, which platforms have in their message: Java as
     * "certificate_revoked", Android as "SSLV3_ALERT_CERTIFICATE_REVOKED".
     */
    internal fun whyUnreachable(error: Throwable): Pair<String, String> {
        val said = generateSequence(error) { it.cause }.joinToString { it.message.orEmpty() }.lowercase(Locale.ROOT).replace(' ', '_')
        val word = listOf(Unreachable.CERTIFICATE_REVOKED, Unreachable.CERTIFICATE_EXPIRED).find { "alert" in said && it in said }
        return when (word) {
            Unreachable.CERTIFICATE_REVOKED -> word to "the broker says that this device's certificate was revoked"
            Unreachable.CERTIFICATE_EXPIRED -> word to "the broker says that this device's certificate has expired"
            else -> Unreachable.NETWORK to (error.message ?: error.javaClass.simpleName)
        }
    }

    /** One key with its certificate. The platform's own managers want keys that can be read. */
    private class OwnKey(private val key: PrivateKey, private val certificate: X509Certificate) : X509ExtendedKeyManager() {
        override fun getClientAliases(type: String?, issuers: Array<out Principal>?): Array<String> = arrayOf(ALIAS)

        override fun chooseClientAlias(types: Array<out String>?, issuers: Array<out Principal>?, socket: Socket?): String =
            ALIAS

        override fun chooseEngineClientAlias(
            types: Array<out String>?,
            issuers: Array<out Principal>?,
            engine: SSLEngine?,
        ): String = ALIAS

        override fun getServerAliases(type: String?, issuers: Array<out Principal>?): Array<String>? = null

        override fun chooseServerAlias(type: String?, issuers: Array<out Principal>?, socket: Socket?): String? = null

        override fun getCertificateChain(alias: String?): Array<X509Certificate> = arrayOf(certificate)

        override fun getPrivateKey(alias: String?): PrivateKey = key
    }

    private const val ALIAS = "identity"
}
