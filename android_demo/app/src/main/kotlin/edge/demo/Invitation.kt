package edge.demo

import edge.ConfigError
import edge.Identity
import edge.runtime.BrokerUrl

/**
 * What an operator gives a person who may take part, in one file: where the coordinator is, and this phone's identity.
 *
 *     coordinator mqtts://fl.example.com:8883
 *     -----BEGIN PRIVATE KEY----- ...             identity.key
 *     -----BEGIN CERTIFICATE----- ...             identity.crt
 *     -----BEGIN CERTIFICATE----- ...             registrar.crt
 *
 * @property coordinator the broker's address, mqtts only: an identity is not shown to whoever listens.
 */
class Invitation private constructor(val coordinator: String, private val key: String, private val certificates: List<String>) {
    /** Whether it is the same as [other]. */
    fun isSame(other: Invitation): Boolean =
        coordinator == other.coordinator && key == other.key && certificates == other.certificates

    /** The identity in it, checked at [now], seconds since the epoch. Raises IdentityError. */
    fun identity(now: Double): Identity = Identity.fromPem(key, certificates[0], certificates[1], now)

    companion object {
        private val BLOCK = Regex("-----BEGIN ([A-Z ]+)-----.*?-----END \\1-----", RegexOption.DOT_MATCHES_ALL)
        private val COORDINATOR = Regex("^coordinator[ \t]+(\\S+)[ \t]*\\r?$", RegexOption.MULTILINE)
        private const val MOST_CHARACTERS = 20_000
        private const val HINT = "ask whoever invited you for the file again"

        /** Read an invitation. Raises ConfigError: something is missing from it. */
        fun parse(text: String): Invitation = parse(text, mayBePlain = false)

        /** The same, for tests, whose broker is on this machine. */
        internal fun parse(text: String, mayBePlain: Boolean): Invitation {
            if (text.length > MOST_CHARACTERS) throw ConfigError("this file is too long for an invitation", HINT)
            val coordinator = COORDINATOR.find(text)?.groupValues?.get(1)
                ?: throw ConfigError("this file does not say where the coordinator is", HINT)
            if (!BrokerUrl.parse(coordinator).tls && !mayBePlain) {
                throw ConfigError("the coordinator's address is $coordinator, which is not encrypted", "it must begin with mqtts://")
            }
            val blocks = BLOCK.findAll(text).map { it.groupValues[1] to it.value + "\n" }.toList()
            val keys = blocks.filter { it.first.endsWith("PRIVATE KEY") }.map { it.second }
            val certificates = blocks.filter { it.first == "CERTIFICATE" }.map { it.second }
            if (keys.size != 1 || certificates.size != 2) {
                throw ConfigError(
                    "this file holds ${keys.size} keys and ${certificates.size} certificates, not a key and two certificates",
                    HINT,
                )
            }
            return Invitation(coordinator, keys[0], certificates)
        }
    }
}
