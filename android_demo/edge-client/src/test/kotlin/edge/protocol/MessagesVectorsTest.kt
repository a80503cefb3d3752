package edge.protocol

import edge.Bytes
import edge.Coded
import edge.Inputs
import edge.JsonObject
import edge.RemoteProtocolError
import edge.Signing
import edge.Vectors
import java.lang.reflect.Modifier
import java.math.BigInteger
import java.security.KeyFactory
import java.security.interfaces.ECPrivateKey
import java.security.spec.ECPrivateKeySpec
import org.junit.jupiter.api.Assertions.assertArrayEquals
import org.junit.jupiter.api.Assertions.assertEquals
import org.junit.jupiter.api.DynamicTest
import org.junit.jupiter.api.TestFactory

/** The golden files of frames. A body that Kotlin writes may be laid out otherwise; what it must match is reading. */
class MessagesVectorsTest {
    @TestFactory
    fun frames(): List<DynamicTest> =
        Vectors.tests("messages.json", mapOf("read" to ::read, "write" to ::write))

    private fun read(i: Inputs): Any {
        val frame = Codec.readFrame(i.bytes("frame"))
        val key = Signing.publicKeyFromPem(i.text("public"))
        if (!Signing.verifyRaw(key, frame.signature, frame.signedFor(i.text("device_id")))) {
            throw RemoteProtocolError("the signature is not the sender's")
        }
        val message = parse(frame, i.text("reader"))
        return mapOf(
            "kind" to message.javaClass.simpleName,
            "certificate" to frame.certificate.array,
            "message" to plain(message),
        )
    }

    /** Reads the frame that Python wrote, writes its message anew, and sees that this too is read as the message. */
    private fun write(i: Inputs): Any {
        val expected = Codec.readFrame(Vectors.outOf(i))
        val reader = if (expected.kind in 32..63) "coordinator" else "device"
        val message = parse(expected, reader)
        assertEquals((i["message"] as JsonObject).fields.keys, (plain(message) as Map<*, *>).keys)
        val key = KeyFactory.getInstance("EC")
            .generatePrivate(ECPrivateKeySpec(BigInteger(i.text("private"), 16), Signing.p256)) as ECPrivateKey
        fun write(what: Message) =
            Codec.writeFrame(what, i.text("device_id"), Bytes(i.bytes("certificate"))) { Signing.signRaw(key, it) }
        val frame = Codec.readFrame(write(message))
        assertEquals(message, parse(frame, reader))
        assertEquals(Bytes(i.bytes("certificate")), frame.certificate)
        assertArrayEquals(write(message), write(parse(frame, reader)))
        // The signature is RFC 6979's: over the very bytes that Python signed it is the same.
        assertArrayEquals(expected.signature, Signing.signRaw(key, expected.signedFor(i.text("device_id"))))
        return Vectors.outOf(i)
    }

    private fun parse(frame: Frame, reader: String): Message =
        if (reader == "device") Codec.parseForDevice(frame) else Codec.parseForCoordinator(frame)

    companion object {
        private val UNSIGNED = setOf("sequence", "sizeBytes", "deviceVariance")

        /** A message as in the golden file: names in snake case, bytes in hexadecimal, enums as numbers. */
        fun plain(value: Any?): Any? = when (value) {
            is Bytes -> value.array
            is Coded -> value.code
            is List<*> -> value.map(::plain)
            is Double -> if (value.isInfinite()) "infinity" else value
            is Number, is String, is Boolean -> value
            null -> null
            else -> value.javaClass.declaredFields.filter { !Modifier.isStatic(it.modifiers) }.associate { field ->
                field.isAccessible = true
                val content = field.get(value)
                val name = field.name.replace(Regex("[A-Z]")) { "_" + it.value.lowercase() }
                name to if (field.name in UNSIGNED) BigInteger(java.lang.Long.toUnsignedString(content as Long)) else plain(content)
            }
        }
    }
}
