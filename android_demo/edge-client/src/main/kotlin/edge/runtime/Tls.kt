package edge.runtime

import edge.ConfigError
import edge.Identity
import edge.Registrar
import java.net.Socket
import java.security.GeneralSecurityException
import java.security.KeyStore
import java.security.Principal
import java.security.PrivateKey
import java.security.cert.X509Certificate
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
