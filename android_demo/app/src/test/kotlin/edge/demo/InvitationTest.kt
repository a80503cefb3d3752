package edge.demo

import edge.ConfigError
import org.junit.jupiter.api.Assertions.assertEquals
import org.junit.jupiter.api.Assertions.assertThrows
import org.junit.jupiter.api.Assertions.assertTrue
import org.junit.jupiter.api.Test

class InvitationTest {
    private val certificate = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"
    private val good = "coordinator mqtts://fl.example.com:8883\nregistrar https://fl.example.com\ntoken abc\n$certificate"

    @Test
    fun `where to enrol, with what token, and the certificate of who is to be there`() {
        val read = Invitation.parse(good)
        assertEquals("mqtts://fl.example.com:8883", read.coordinator)
        assertEquals(listOf("https://fl.example.com", "abc", certificate), listOf(read.registrar, read.token, read.certificate))
        assertEquals(read.copy(certificate = ""), Invitation.parse(good.replace("\n", "\r\n")).copy(certificate = ""))
        assertTrue("abc" !in read.toString())
    }

    @Test
    fun `what is missing is named`() {
        val bad = mapOf(
            "" to "does not say where the coordinator is",
            good.replace("mqtts", "mqtt") to "not encrypted",
            good.replace("token abc", "") to "holds no token",
            good.replace("registrar", "r") to "does not say where to enrol",
            good.replace(certificate, "") to "holds 0 certificates",
            good + certificate to "holds 2 certificates",
            good.replace("coordinator mqtts://fl.example.com:8883", "coordinator http://x") to "",
            good + "x".repeat(20_000) to "too long",
        )
        for ((text, words) in bad) {
            val error = assertThrows(ConfigError::class.java, { Invitation.parse(text) }, words)
            assertTrue(words in error.message!!) { error.message }
        }
    }
}
