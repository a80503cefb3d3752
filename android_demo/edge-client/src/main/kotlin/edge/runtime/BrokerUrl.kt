package edge.runtime

import edge.ConfigError
import java.net.URI
import java.net.URISyntaxException

/** Where a broker is: `mqtt(s)://[user@]host[:port]`. */
public data class BrokerUrl(val tls: Boolean, val host: String, val port: Int, val user: String?) {
    public companion object {
        /** Reads a broker's URL; raises ConfigError where it is none, or holds a password. */
        public fun parse(text: String): BrokerUrl {
            val uri = try {
                URI(text)
            } catch (error: URISyntaxException) {
                throw unusable(text, error)
            }
            val tls = when (uri.scheme) {
                "mqtt" -> false
                "mqtts" -> true
                else -> throw unusable(text, null)
            }
            val host = uri.host ?: throw unusable(text, null)
            if ((uri.path ?: "") !in setOf("", "/") || uri.query != null || uri.fragment != null) throw unusable(text, null)
            if (uri.userInfo?.contains(':') == true) {
                throw ConfigError("the broker's URL holds a password", "pass the password apart from the URL")
            }
            val port = if (uri.port < 0) (if (tls) 8883 else 1883) else uri.port
            if (port !in 1..65_535) throw unusable(text, null)
            return BrokerUrl(tls, host.removeSurrounding("[", "]"), port, uri.userInfo)
        }

        private fun unusable(text: String, cause: Exception?) =
            ConfigError("'${text.take(200)}' is no broker's URL", "write mqtts://host or mqtt://host:1883", cause)
    }
}
