package edge.demo

import edge.ConfigError
import edge.runtime.BrokerUrl

/**
 * What an operator gives a person who may take part, in one file: where to enrol and where the coordinator is.
 *
 *     coordinator mqtts://fl.example.com:8883
 *     registrar https://fl.example.com:8443
 *     token one-time-token
 *     -----BEGIN CERTIFICATE----- ...             registrar.crt
 *
 * The key is made on the phone and stays there; the token is good for one phone.
 *
 * @property coordinator the broker's address, mqtts only: an identity is not shown to whoever listens.
 * @property registrar where the phone gets its certificate.
 * @property token with which it does.
 * @property certificate the registrar's, PEM, pinned.
 */
data class Invitation(
    val coordinator: String,
    val registrar: String,
    val token: String,
    val certificate: String,
) {
    /** Without the token, which is as good as a phone's identity until it is used. */
    override fun toString(): String = "Invitation($coordinator)"

    companion object {
        private val CERTIFICATE =
            Regex("-----BEGIN CERTIFICATE-----.*?-----END CERTIFICATE-----", RegexOption.DOT_MATCHES_ALL)
        private const val MOST_CHARACTERS = 20_000
        private const val HINT = "ask whoever invited you for the file again"

        /** Read an invitation. Raises ConfigError: something is missing from it. */
        fun parse(text: String): Invitation = parse(text, mayBePlain = false)

        /** The same, for tests, whose broker is on this machine. */
        internal fun parse(text: String, mayBePlain: Boolean): Invitation {
            if (text.length > MOST_CHARACTERS) throw ConfigError("this file is too long for an invitation", HINT)
            val coordinator = named(text, "coordinator")
                ?: throw ConfigError("this file does not say where the coordinator is", HINT)
            if (!BrokerUrl.parse(coordinator).tls && !mayBePlain) {
                throw ConfigError("the coordinator's address is $coordinator, which is not encrypted", "it must begin with mqtts://")
            }
            val registrar = named(text, "registrar") ?: throw ConfigError("this file does not say where to enrol", HINT)
            val token = named(text, "token") ?: throw ConfigError("this file holds no token to enrol with", HINT)
            val certificates = CERTIFICATE.findAll(text).toList()
            if (certificates.size != 1) {
                throw ConfigError("this file holds ${certificates.size} certificates, not the registrar's alone", HINT)
            }
            return Invitation(coordinator, registrar, token, certificates[0].value + "\n")
        }

        private fun named(text: String, name: String): String? =
            Regex("^$name[ \t]+(\\S+)[ \t]*\\r?$", RegexOption.MULTILINE).find(text)?.groupValues?.get(1)
    }
}
