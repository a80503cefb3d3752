package edge

import edge.protocol.Codec
import edge.protocol.Message
import edge.protocol.MessagesVectorsTest
import edge.secagg.Client
import edge.secagg.Coordinator
import edge.secagg.Modular
import java.io.File
import java.math.BigInteger
import java.security.KeyFactory
import java.security.interfaces.ECPrivateKey
import java.security.spec.ECPrivateKeySpec
import org.junit.jupiter.api.Assertions.assertEquals
import org.junit.jupiter.api.Test

/**
 * The golden file that Kotlin writes and Python reads: frames of every kind, and packed masked vectors.
 *
 * `EDGE_WRITE_VECTORS=1 tools/test_kotlin.sh` writes it anew; else it must be what is there.
 */
class FromKotlinTest {
    private val file = File(Vectors.repository, "tests/vectors/from_kotlin.json")

    @Test
    fun `the file is what Kotlin writes`() {
        val text = "{\"about\": \"What the Kotlin client writes, for others to read. Cases as in messages.json.\",\n" +
            "\"cases\": [\n" + (frames() + maskedInputs()).joinToString(",\n") + "\n]}\n"
        if (System.getenv("EDGE_WRITE_VECTORS") == "1") file.writeText(text)
        assertEquals(file.readText(), text) { "write it anew with EDGE_WRITE_VECTORS=1 tools/test_kotlin.sh" }
    }

    private fun frames(): List<String> = casesOf("messages.json", "read").filter { "out" in it }.map { case ->
        val given = Inputs(case.getValue("in").asObject("in"))
        val frame = Codec.readFrame(given.bytes("frame"))
        val isForDevice = given.text("reader") == "device"
        val message: Message = if (isForDevice) Codec.parseForDevice(frame) else Codec.parseForCoordinator(frame)
        val key = KeyFactory.getInstance("EC").generatePrivate(ECPrivateKeySpec(PRIVATE, Signing.p256)) as ECPrivateKey
        val written = Codec.writeFrame(message, given.text("device_id"), frame.certificate) { Signing.signRaw(key, it) }
        val inputs = mapOf(
            "frame" to written.hex(),
            "device_id" to given.text("device_id"),
            "reader" to given.text("reader"),
            "public" to given.text("public"),
        )
        val out = mapOf(
            "kind" to message.javaClass.simpleName,
            "certificate" to frame.certificate.hex(),
            "message" to MessagesVectorsTest.plain(message),
        )
        json(mapOf("op" to "read", "in" to inputs, "out" to out))
    }

    private fun maskedInputs(): List<String> = casesOf("secagg_stages.json", "mask").filter { "out" in it }.map { case ->
        val i = Inputs(case.getValue("in").asObject("in"))
        val peers = i.list("peers").map { peer ->
            val (index, entropy) = peer.asList("peer")
            Coordinator.peer(Client.roundKeys(entropy.asText("entropy").unhex()), index.asInt("index"))
        }
        val masked = Client.mask(
            i.ints("vector").toIntArray(), i.int("bits"), i.bytes("self_seed"), Client.roundKeys(i.bytes("keys")),
            i.bytes("ctx"), i.bytes("root"), i.bytes("sharers_digest"), i.int("index"), peers,
        )
        val out = Modular.pack(masked, i.int("bits")).hex()
        json(mapOf("op" to "masked_input", "in" to JsonObject(case.getValue("in").asObject("in")), "out" to out))
    }

    private fun casesOf(name: String, operation: String): List<Map<String, Json>> =
        parseJson(File(Vectors.repository, "tests/vectors/$name").readText()).asObject(name).getValue("cases")
            .asList("cases").map { it.asObject("case") }.filter { it.getValue("op").asText("op") == operation }

    private fun json(value: Any?): String = when (value) {
        is JsonObject -> json(value.fields)
        is JsonArray -> json(value.items)
        is JsonText -> json(value.value)
        is JsonNumber -> value.text
        is JsonBoolean -> value.value.toString()
        is Map<*, *> -> value.entries.joinToString(", ", "{", "}") { json(it.key) + ": " + json(it.value) }
        is List<*> -> value.joinToString(", ", "[", "]") { json(it) }
        is ByteArray -> json(value.hex())
        is String -> value.map { c -> if (c in ' '..'~' && c != '"' && c != '\\') c.toString() else "\\u%04x".format(c.code) }
            .joinToString("", "\"", "\"")
        else -> value.toString()
    }

    private companion object {
        /** The key of messages.json. */
        val PRIVATE = BigInteger("1f2e3d4c5b6a79880796a5b4c3d2e1f00f1e2d3c4b5a69788796a5b4c3d2e1f1", 16)
    }
}
