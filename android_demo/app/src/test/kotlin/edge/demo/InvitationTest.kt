package edge.demo

import edge.ConfigError
import org.junit.jupiter.api.Assertions.assertEquals
import org.junit.jupiter.api.Assertions.assertThrows
import org.junit.jupiter.api.Assertions.assertTrue
import org.junit.jupiter.api.Test

class InvitationTest {
    private fun block(kind: String) = "-----BEGIN $kind-----\nAAAA\n-----END $kind-----\n"

    private val good = "coordinator mqtts://fl.example.com:8883\n" + block("PRIVATE KEY") + block("CERTIFICATE") + block("CERTIFICATE")

    @Test
    fun `the files of an identity, one after the other, below the coordinator's address`() {
        assertEquals("mqtts://fl.example.com:8883", Invitation.parse(good).coordinator)
        assertEquals("mqtts://fl.example.com:8883", Invitation.parse(good.replace("\n", "\r\n")).coordinator)
    }

    @Test
    fun `what is missing is named`() {
        val bad = mapOf(
            "" to "does not say where the coordinator is",
            good.replace("mqtts", "mqtt") to "not encrypted",
            good.replace(block("PRIVATE KEY"), "") to "holds 0 keys and 2 certificates",
            good + block("CERTIFICATE") to "holds 1 keys and 3 certificates",
            good.replace("coordinator mqtts://fl.example.com:8883", "coordinator http://x") to "",
            good + "x".repeat(20_000) to "too long",
        )
        for ((text, words) in bad) {
            val error = assertThrows(ConfigError::class.java, { Invitation.parse(text) }, words)
            assertTrue(words in error.message!!) { error.message }
        }
    }
}
