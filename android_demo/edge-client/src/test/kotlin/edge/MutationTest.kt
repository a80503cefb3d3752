package edge

import edge.protocol.Codec
import java.io.File
import java.util.Random
import org.junit.jupiter.api.Assertions.assertEquals
import org.junit.jupiter.api.Assertions.assertThrows
import org.junit.jupiter.api.Assertions.assertTrue
import org.junit.jupiter.api.Test

/** Bytes that a faulty or hostile peer might send: read, or refused with the one error for that, and never a crash. */
class MutationTest {
    private val random = Random(1)

    private fun mutated(data: ByteArray): ByteArray {
        val changed = if (random.nextInt(4) == 0) data.copyOf(random.nextInt(data.size + 1)) else data.copyOf()
        if (changed.isEmpty()) return changed
        repeat(1 + random.nextInt(4)) {
            val at = random.nextInt(changed.size)
            changed[at] = if (random.nextInt(3) == 0) listOf(0, -1, 127, -128).random().toByte() else random.nextInt().toByte()
        }
        return changed
    }

    private fun List<Int>.random() = this[random.nextInt(size)]

    @Test
    fun `mutated bodies are read or refused`() {
        val cases = parseJson(File(Vectors.repository, "tests/vectors/messages.json").readText()).asObject("file")
            .getValue("cases").asList("cases").map { it.asObject("case") }.filter { "out" in it && it["op"] == JsonText("read") }
        var refused = 0
        for (case in cases) {
            val frame = Codec.readFrame(Inputs(case.getValue("in").asObject("in")).bytes("frame"))
            repeat(400) {
                try {
                    val message = Codec.decode(frame.kind, mutated(frame.body))
                    assertEquals(message, Codec.decode(frame.kind, Codec.encode(message)))
                } catch (_: RemoteProtocolError) {
                    refused++
                }
            }
        }
        assertTrue(refused > 1_000) { "$refused" }
    }

    @Test
    fun `mutated frames are cut or refused`() {
        val whole = Vectors.repository.resolve("tests/vectors/messages.json").readText()
        val frames = parseJson(whole).asObject("file").getValue("cases").asList("cases").map { it.asObject("case") }
            .filter { "out" in it && it["op"] == JsonText("read") }.map { Inputs(it.getValue("in").asObject("in")).bytes("frame") }
        for (frame in frames) {
            repeat(200) {
                try {
                    Codec.readFrame(mutated(frame))
                } catch (_: RemoteProtocolError) {
                    // It is no frame.
                }
            }
        }
    }

    @Test
    fun `mutated certificates are refused`() {
        val registrar = Registrar.fromPem(REGISTRAR)
        val der = Signing.fromPem(DEVICE, "CERTIFICATE", "test")
        val now = 1_800_000_100.0
        assertEquals("device-000", registrar.verify(Bytes(der), Role.DEVICE, now).id)
        assertThrows(IdentityError::class.java) { registrar.verify(Bytes(der), Role.COORDINATOR, now) }
        assertThrows(IdentityError::class.java) { registrar.verify(Bytes(der), Role.DEVICE, now + 1e9) }
        assertThrows(IdentityError::class.java) { registrar.verify(Bytes(der), Role.DEVICE, now - 1e6) }
        assertThrows(IdentityError::class.java) { registrar.verify(Bytes(der + 0), Role.DEVICE, now) }
        assertThrows(IdentityError::class.java) { registrar.verify(Bytes(DEVICE.toByteArray()), Role.DEVICE, now) }
        assertThrows(IdentityError::class.java) { registrar.verify(Bytes(ByteArray(2049)), Role.DEVICE, now) }
        repeat(3_000) {
            val changed = mutated(der)
            if (!changed.contentEquals(der)) {
                assertThrows(IdentityError::class.java) { registrar.verify(Bytes(changed), Role.DEVICE, now) }
            }
        }
        assertThrows(IdentityError::class.java) { Registrar.fromPem(DEVICE) }
    }

    private companion object {
        // Made by edge_sdk's registrar in 2027, of keys that nobody kept.
        const val REGISTRAR = """-----BEGIN CERTIFICATE-----
MIIBejCCAR+gAwIBAgIUYGSvNcD3WaaMvwISUXQuBNcpJYAwCgYIKoZIzj0EAwIw
GTEXMBUGA1UEAwwOVGVzdCBSZWdpc3RyYXIwHhcNMjcwMTE0MDgwMDAwWhcNMzcw
MTE1MDgwMDAwWjAZMRcwFQYDVQQDDA5UZXN0IFJlZ2lzdHJhcjBZMBMGByqGSM49
AgEGCCqGSM49AwEHA0IABB/r4ND4tvMxPXVqZu2ZI+1uy0MrVhd8vWGknFHQP/u5
FyjcTVoIlFXX5XHRlvsnozEN/7938rIqLBoae+n6VJ+jRTBDMBIGA1UdEwEB/wQI
MAYBAf8CAQAwDgYDVR0PAQH/BAQDAgEGMB0GA1UdDgQWBBT1vqVtd2nKPMMrICve
UrXTUK6eMjAKBggqhkjOPQQDAgNJADBGAiEA8BKrD9z8hkSRmVn6NJq/FEzZ6kFs
SCw6rUyt5+FKV1gCIQD6ymm3mFWZzSp9RfKPld9AG1lC86I1wPCpMY625D/neA==
-----END CERTIFICATE-----
"""

        const val DEVICE = """-----BEGIN CERTIFICATE-----
MIIBlzCCAT2gAwIBAgIUFrlSd4LyLwCsuFVDcqx+J3HFCdMwCgYIKoZIzj0EAwIw
GTEXMBUGA1UEAwwOVGVzdCBSZWdpc3RyYXIwHhcNMjcwMTE0MDgwMDAwWhcNMjcw
NDE1MDgwMDAwWjAmMQ8wDQYDVQQLDAZkZXZpY2UxEzARBgNVBAMMCmRldmljZS0w
MDAwWTATBgcqhkjOPQIBBggqhkjOPQMBBwNCAAQBItG3J5en12BZwod48UqrXcx+
NrlTkjJ90reOPm9fqYdhk0vCmV3yrf/y6fUuMMoknmcc7yxtvmx+Yh5BMHEKo1Yw
VDAMBgNVHRMBAf8EAjAAMA4GA1UdDwEB/wQEAwIHgDATBgNVHSUEDDAKBggrBgEF
BQcDAjAfBgNVHSMEGDAWgBT1vqVtd2nKPMMrICveUrXTUK6eMjAKBggqhkjOPQQD
AgNIADBFAiBBYw1Z/0pqo/pDvO/iUUo3wLMA2zwpJLQKQEYqCwZwWQIhAIWztgZM
MtU10aQ/aCjMfvoLoVRDb83KKowKgi9aoYwT
-----END CERTIFICATE-----
"""
    }
}
