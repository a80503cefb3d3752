package edge.demo

import edge.android.SealedFiles
import java.io.File
import javax.crypto.spec.SecretKeySpec
import org.junit.jupiter.api.Assertions.assertEquals
import org.junit.jupiter.api.Assertions.assertFalse
import org.junit.jupiter.api.Assertions.assertNull
import org.junit.jupiter.api.Assertions.assertTrue
import org.junit.jupiter.api.Test
import org.junit.jupiter.api.io.TempDir

class SealedChoicesTest {
    @TempDir
    lateinit var folder: File

    private fun choices() = SealedChoices(SealedFiles(folder) { SecretKeySpec(ByteArray(32) { 7 }, "AES") })

    @Test
    fun `there are none at first, and each outlives the process`() {
        assertFalse(choices().consenting)
        assertNull(choices().invitation)
        choices().invitation = "coordinator mqtts://ä"
        choices().consenting = true
        assertEquals("coordinator mqtts://ä", choices().invitation)
        assertTrue(choices().consenting)
    }

    @Test
    fun `what is taken back leaves no file`() {
        val choices = choices()
        choices.invitation = "secret"
        choices.consenting = true
        choices.consenting = false
        choices.invitation = null
        assertFalse(choices.consenting)
        assertNull(choices.invitation)
        assertEquals(emptyList<String>(), folder.list()!!.toList())
    }
}
