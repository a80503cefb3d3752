package edge

import edge.runtime.BrokerUrl
import org.junit.jupiter.api.Assertions.assertEquals
import org.junit.jupiter.api.Assertions.assertThrows
import org.junit.jupiter.api.Test

/** What is read from outside: strict JSON, and brokers' URLs. */
class JsonTest {
    @Test
    fun `values are read`() {
        val expected = mapOf(
            "a" to JsonArray(listOf(JsonNumber("-1.5e3"), JsonBoolean(true), JsonNull)),
            "b\n\u00e9" to JsonText("\"\\\u20ac"),
        )
        assertEquals(JsonObject(expected), parseJson(" {\"a\" : [-1.5e3, true,null], \"b\\n\u00e9\":\"\\\"\\\\\\u20ac\"} "))
    }

    @Test
    fun `what is no JSON is refused`() {
        val wrong = listOf(
            "", "{", "[1,]", "{\"a\":1,\"a\":2}", "01", "1.", "+1", "nul", "NaN", "\"\u0001\"", "\"\\x\"", "\"\\u12\"", "1 2",
            "{'a':1}", "[1 2]", "{\"a\" 1}", "\"", "[".repeat(100) + "]".repeat(100),
        )
        for (text in wrong) assertThrows(JsonError::class.java, { parseJson(text) }, text)
    }

    @Test
    fun `brokers' URLs`() {
        assertEquals(BrokerUrl(false, "host", 1883, null), BrokerUrl.parse("mqtt://host"))
        assertEquals(BrokerUrl(true, "10.0.0.1", 99, "me"), BrokerUrl.parse("mqtts://me@10.0.0.1:99/"))
        assertEquals(BrokerUrl(true, "::1", 8883, null), BrokerUrl.parse("mqtts://[::1]"))
        for (text in listOf("host", "http://host", "mqtt://", "mqtt://h:0", "mqtt://h:99999", "mqtt://u:p@h", "mqtt://h/x", "a b")) {
            assertThrows(ConfigError::class.java, { BrokerUrl.parse(text) }, text)
        }
    }
}
