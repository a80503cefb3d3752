package edge.runtime

import java.io.ByteArrayOutputStream
import java.io.DataInputStream
import java.io.DataOutputStream
import java.io.IOException

/** The versions of MQTT that are spoken; [level] is what CONNECT calls them. */
internal enum class MqttVersion(val level: Int) { V3(4), V5(5) }

/** One packet as it came: its type and flags in the first byte, and the rest. */
internal class MqttPacket(private val first: Int, val body: ByteArray) {
    val type: Int get() = first shr 4
    val qos: Int get() = first shr 1 and 3

    fun read(): DataInputStream = DataInputStream(body.inputStream())
}

/** What a broker says to CONNECT; [receiveMaximum] limits how many messages may wait for their acknowledgement. */
internal class ConnAck(val code: Int, val receiveMaximum: Int, val keepAliveS: Int?, val packetMaxBytes: Long)

/**
 * The packets of MQTT 5 and 3.1.1 that a device needs, as bytes: QoS 1, clean sessions, no will.
 *
 * Knows no socket. What is not MQTT raises IOException.
 */
internal class MqttPackets(private val version: MqttVersion) {
    fun connect(clientId: String, user: String?, password: String?, keepAliveS: Int): ByteArray = packet(0x10) {
        writeText("MQTT")
        writeByte(version.level)
        val flags = CLEAN or (if (user != null) USER else 0) or (if (password != null) PASSWORD else 0)
        writeByte(flags)
        writeShort(keepAliveS)
        writeProperties()
        writeText(clientId)
        user?.let { writeText(it) }
        password?.let { writeText(it) }
    }

    fun subscribe(id: Int, topics: List<String>): ByteArray = packet(0x82) {
        writeShort(id)
        writeProperties()
        for (topic in topics) {
            writeText(topic)
            writeByte(1)
        }
    }

    fun publish(id: Int, topic: String, payload: ByteArray, expiryS: Int): ByteArray = packet(0x32) {
        writeText(topic)
        writeShort(id)
        if (version == MqttVersion.V5) {
            writeByte(5)
            writeByte(MESSAGE_EXPIRY)
            writeInt(expiryS)
        }
        write(payload)
    }

    fun publishAck(id: Int): ByteArray = packet(0x40) { writeShort(id) }

    fun ping(): ByteArray = packet(0xc0) {}

    fun disconnect(): ByteArray = packet(0xe0) {}

    /** The next packet, of at most [PACKET_MAX_BYTES]. */
    fun read(input: DataInputStream): MqttPacket {
        val first = input.readUnsignedByte()
        val size = readNumber(input)
        if (size > PACKET_MAX_BYTES) throw IOException("a packet of $size bytes")
        return MqttPacket(first, ByteArray(size).also { input.readFully(it) })
    }

    fun readConnAck(packet: MqttPacket): ConnAck {
        if (packet.type != CONNACK) throw IOException("not what a broker answers to CONNECT")
        val input = packet.read()
        input.readUnsignedByte()
        val code = input.readUnsignedByte()
        val found = if (version == MqttVersion.V5 && input.available() > 0) readProperties(input) else emptyMap()
        return ConnAck(
            code,
            (found[RECEIVE_MAXIMUM] ?: 65_535).toInt(),
            found[SERVER_KEEP_ALIVE]?.toInt(),
            found[MAXIMUM_PACKET_SIZE] ?: Long.MAX_VALUE,
        )
    }

    /** The topic, the packet's id (0 for QoS 0) and the payload of a message. */
    fun readPublish(packet: MqttPacket): Triple<String, Int, ByteArray> {
        val input = packet.read()
        val topic = readText(input)
        val id = if (packet.qos > 0) input.readUnsignedShort() else 0
        if (version == MqttVersion.V5) readProperties(input)
        return Triple(topic, id, ByteArray(input.available()).also { input.readFully(it) })
    }

    /** The codes of SUBACK: from 0x80 on a refusal. */
    fun readSubscribeCodes(packet: MqttPacket): List<Int> {
        val input = packet.read()
        input.readUnsignedShort()
        if (version == MqttVersion.V5) readProperties(input)
        return List(input.available()) { input.readUnsignedByte() }
    }

    private fun packet(first: Int, fill: DataOutputStream.() -> Unit): ByteArray {
        val body = ByteArrayOutputStream()
        DataOutputStream(body).fill()
        val whole = ByteArrayOutputStream(body.size() + 5)
        whole.write(first)
        var size = body.size()
        do {
            whole.write(if (size >= 128) size and 127 or 128 else size)
            size = size shr 7
        } while (size > 0)
        body.writeTo(whole)
        return whole.toByteArray()
    }

    private fun DataOutputStream.writeText(text: String) {
        val bytes = text.toByteArray()
        writeShort(bytes.size)
        write(bytes)
    }

    private fun DataOutputStream.writeProperties() {
        if (version == MqttVersion.V5) writeByte(0)
    }

    private fun readText(input: DataInputStream): String =
        ByteArray(input.readUnsignedShort()).also { input.readFully(it) }.toString(Charsets.UTF_8)

    /** A number of up to 28 bits, seven to a byte. */
    private fun readNumber(input: DataInputStream): Int {
        var value = 0
        for (shift in 0..21 step 7) {
            val byte = input.readUnsignedByte()
            value = value or (byte and 127 shl shift)
            if (byte < 128) return value
        }
        throw IOException("a length of more than four bytes")
    }

    /** The numeric properties by their identifiers; others are skipped. */
    private fun readProperties(input: DataInputStream): Map<Int, Long> {
        val end = input.run { readNumber(this).let { available() - it } }
        val found = HashMap<Int, Long>()
        while (input.available() > end) {
            when (val property = input.readUnsignedByte()) {
                in ONE_BYTE -> found[property] = input.readUnsignedByte().toLong()
                in TWO_BYTES -> found[property] = input.readUnsignedShort().toLong()
                in FOUR_BYTES -> found[property] = input.readInt().toLong() and 0xffffffffL
                in TEXTS -> readText(input)
                SUBSCRIPTION_ID -> readNumber(input)
                USER_PROPERTY -> repeat(2) { readText(input) }
                else -> throw IOException("the unknown property $property")
            }
        }
        return found
    }

    companion object {
        const val CONNACK: Int = 2
        const val PUBLISH: Int = 3
        const val PUBACK: Int = 4
        const val SUBACK: Int = 9
        const val PINGRESP: Int = 13
        const val DISCONNECT: Int = 14

        /** Larger than any message of the protocol: a chunk of 256 KiB with its header. */
        private const val PACKET_MAX_BYTES = 1 shl 20
        private const val CLEAN = 0x02
        private const val PASSWORD = 0x40
        private const val USER = 0x80
        private const val MESSAGE_EXPIRY = 0x02
        private const val SERVER_KEEP_ALIVE = 0x13
        private const val RECEIVE_MAXIMUM = 0x21
        private const val MAXIMUM_PACKET_SIZE = 0x27
        private const val SUBSCRIPTION_ID = 0x0b
        private const val USER_PROPERTY = 0x26
        private val ONE_BYTE = setOf(0x01, 0x17, 0x19, 0x24, 0x25, 0x28, 0x29, 0x2a)
        private val TWO_BYTES = setOf(SERVER_KEEP_ALIVE, RECEIVE_MAXIMUM, 0x22, 0x23)
        private val FOUR_BYTES = setOf(MESSAGE_EXPIRY, 0x11, 0x18, MAXIMUM_PACKET_SIZE)
        private val TEXTS = setOf(0x03, 0x08, 0x09, 0x12, 0x15, 0x16, 0x1a, 0x1c, 0x1f)
    }
}
