package edge.demo

import edge.StoreError
import edge.android.SealedFiles
import java.io.File
import javax.crypto.spec.SecretKeySpec
import org.junit.jupiter.api.Assertions.assertEquals
import org.junit.jupiter.api.Assertions.assertFalse
import org.junit.jupiter.api.Assertions.assertThrows
import org.junit.jupiter.api.Assertions.assertTrue
import org.junit.jupiter.api.Test
import org.junit.jupiter.api.io.TempDir

class StoredDemoTest {
    @TempDir
    lateinit var folder: File

    private fun files() = SealedFiles(folder, SecretKeySpec(ByteArray(32) { 7 }, "AES"))

    private fun example(digit: Int) = Example(List(64) { (it - 32) / 21f }, digit)

    @Test
    fun `examples are there for the next process, oldest first`() {
        val shelf = SealedShelf(files())
        (0..11).forEach { shelf.add(example(it % 10)) }
        assertEquals((0..11).map { example(it % 10) }, SealedShelf(files()).all())
    }

    @Test
    fun `a full shelf drops the oldest, and numbers are not used twice`() {
        SealedShelf(files(), most = 2).apply { (1..3).forEach { add(example(it)) } }
        val again = SealedShelf(files(), most = 2)
        assertEquals(listOf(2, 3), again.all().map { it.digit })
        again.add(example(4))
        assertEquals(listOf(3, 4), SealedShelf(files()).all().map { it.digit })
    }

    @Test
    fun `erased examples are gone from the disk, choices stay`() {
        val shelf = SealedShelf(files())
        SealedChoices(files()).consenting = true
        shelf.add(example(1))
        shelf.clear()
        assertEquals(emptyList<Example>(), SealedShelf(files()).all())
        assertEquals(listOf("choices"), files().names())
        assertTrue(SealedChoices(files()).consenting)
    }

    @Test
    fun `choices are none at first, and each keeps the other`() {
        val choices = SealedChoices(files())
        assertFalse(choices.consenting)
        assertEquals("", choices.coordinator)
        choices.coordinator = "mqtts://fl.example.com:8883"
        choices.consenting = true
        assertEquals("mqtts://fl.example.com:8883", SealedChoices(files()).coordinator)
        choices.consenting = false
        assertEquals("mqtts://fl.example.com:8883", SealedChoices(files()).coordinator)
        assertFalse(SealedChoices(files()).consenting)
    }

    @Test
    fun `a file of another version is refused by name`() {
        files().write("example-000000000000", byteArrayOf(1, 2, 3))
        val error = assertThrows(StoreError::class.java) { SealedShelf(files()).all() }
        assertEquals("example-000000000000 holds no example of this version", error.message)
    }
}
