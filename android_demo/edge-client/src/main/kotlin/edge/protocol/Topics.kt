package edge.protocol

import edge.LocalProtocolError

/** The kinds of topics that a device reads. */
public enum class Incoming { ANNOUNCEMENT, CONTROL, CHUNK }

/**
 * The topics of the protocol (PROTOCOL.md 7), as one device sees them.
 *
 * Knows nothing of brokers or of payloads. Who may write to a topic is the broker's business; who really wrote a message
 * is told by its signature alone.
 */
public class Topics(deviceId: String, populations: Collection<String>) {
    private val announcements = populations.map { "$PREFIX/pub/task/${checked(it, "population")}" }
    private val controlDown = "$PREFIX/d/${checked(deviceId, "device id")}/dn/ctl"
    private val chunksDown = "$PREFIX/d/$deviceId/dn/b"

    public val controlUp: String = "$PREFIX/d/$deviceId/up/ctl"
    public val chunksUp: String = "$PREFIX/w/$WORKER/$deviceId/c"

    /** What the device subscribes to: exact topics only. */
    public val subscriptions: List<String> = announcements + listOf(controlDown, chunksDown)

    /** What came on a topic, or null where the device expects nothing on it. */
    public fun incoming(topic: String): Incoming? = when (topic) {
        in announcements -> Incoming.ANNOUNCEMENT
        controlDown -> Incoming.CONTROL
        chunksDown -> Incoming.CHUNK
        else -> null
    }

    public companion object {
        private const val PREFIX = "fl/v1"
        private const val WORKER = 0
        private val ID = Regex("[a-z0-9][a-z0-9-]{0,62}")

        /** Whether [text] can name a device, population or task: 1 to 63 lower-case letters, digits and dashes. */
        public fun isId(text: String): Boolean = ID.matches(text)

        private fun checked(text: String, what: String): String {
            if (!isId(text)) {
                throw LocalProtocolError(
                    "'${text.take(100)}' is not a valid $what",
                    "use 1 to 63 lower-case letters, digits and dashes, beginning with a letter or digit",
                )
            }
            return text
        }
    }
}
