package edge.android

import edge.StoreError
import java.io.File
import javax.crypto.spec.SecretKeySpec
import org.junit.jupiter.api.Assertions.assertArrayEquals
import org.junit.jupiter.api.Assertions.assertEquals
import org.junit.jupiter.api.Assertions.assertFalse
import org.junit.jupiter.api.Assertions.assertNull
import org.junit.jupiter.api.Assertions.assertThrows
import org.junit.jupiter.api.Assertions.assertTrue
import org.junit.jupiter.api.Test
import org.junit.jupiter.api.io.TempDir

class SealedFilesTest {
    @TempDir
    lateinit var folder: File

    private fun files(key: Int = 1) = SealedFiles(File(folder, "edge")) { SecretKeySpec(ByteArray(32) { key.toByte() }, "AES") }

    private val secret = "seven drawn with a finger".toByteArray()

    @Test
    fun `what is written is read, by the next process too, and is nowhere on the disk`() {
        files().write("example-1", secret)
        assertArrayEquals(secret, files().read("example-1"))
        assertNull(files().read("example-2"))
        assertFalse(String(File(folder, "edge/example-1").readBytes(), Charsets.ISO_8859_1).contains("seven"))
    }

    @Test
    fun `the same content is sealed differently each time`() {
        files().write("a", secret)
        val first = File(folder, "edge/a").readBytes()
        files().write("a", secret)
        assertFalse(first.contentEquals(File(folder, "edge/a").readBytes()))
    }

    @Test
    fun `every changed byte is found`() {
        files().write("a", secret)
        val file = File(folder, "edge/a")
        val good = file.readBytes()
        for (index in good.indices) {
            file.writeBytes(good.copyOf().also { it[index] = (it[index] + 1).toByte() })
            assertThrows(StoreError::class.java, { files().read("a") }, "byte $index")
        }
        for (size in good.indices) {
            file.writeBytes(good.copyOf(size))
            assertThrows(StoreError::class.java, { files().read("a") }, "$size bytes")
        }
    }

    @Test
    fun `a file cannot take another one's place, nor be read with another key`() {
        files().write("a", secret)
        File(folder, "edge/a").copyTo(File(folder, "edge/b"))
        assertThrows(StoreError::class.java) { files().read("b") }
        val error = assertThrows(StoreError::class.java) { files(key = 2).read("a") }
        assertEquals("a was changed, or sealed with another key", error.message)
        assertTrue(error.hint.contains("enrol again"))
    }

    @Test
    fun `a write that was cut off leaves the content from before`() {
        files().write("a", secret)
        File(folder, "edge/a.part").writeBytes(byteArrayOf(1))
        assertArrayEquals(secret, files().read("a"))
        assertEquals(listOf("a"), files().names())
    }

    @Test
    fun `names do not lead out of the folder`() {
        for (name in listOf("", "../a", "a/b", ".", ".hidden", "a".repeat(101))) {
            assertThrows(IllegalArgumentException::class.java, { files().write(name, secret) }, name)
        }
    }

    @Test
    fun `clearing removes everything, what was cut off too`() {
        files().write("a", secret)
        File(folder, "edge/b.part").writeBytes(byteArrayOf(1))
        files().clear()
        assertEquals(emptyList<String>(), File(folder, "edge").list()!!.toList())
        assertEquals(0, files().sizeBytes())
    }

    @Test
    fun `a folder that cannot be made is told`() {
        File(folder, "edge").writeBytes(byteArrayOf(1))
        val error = assertThrows(StoreError::class.java) { files().write("a", secret) }
        assertTrue(error.message!!.startsWith("cannot write a: "))
    }
}
