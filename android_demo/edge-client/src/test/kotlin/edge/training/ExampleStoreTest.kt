package edge.training

import edge.StoreError
import java.io.File
import org.junit.jupiter.api.Assertions.assertArrayEquals
import org.junit.jupiter.api.Assertions.assertEquals
import org.junit.jupiter.api.Assertions.assertFalse
import org.junit.jupiter.api.Assertions.assertThrows
import org.junit.jupiter.api.Assertions.assertTrue
import org.junit.jupiter.api.Test
import org.junit.jupiter.api.io.TempDir

/** Examples on the device: caps, age, encryption, erasure, and what does not fit. */
class ExampleStoreTest {
    @TempDir
    lateinit var folder: File

    private val schema = mapOf("x" to f32(2), "y" to i64())
    private val file get() = File(folder, "taps.examples")
    private val key get() = File(folder, "taps.examples.key")
    private var now = 1_000.0

    private fun open(maxRows: Int = 3, ttlS: Double = Double.POSITIVE_INFINITY) =
        ExampleStore(file, schema, maxRows, ttlS, now = { now })

    private fun ExampleStore.labels(): List<Long> = take((0 until count).toList()).getValue("y").longs().toList()

    private fun ExampleStore.addAll(vararg labels: Long) =
        labels.forEach { add("x" to floatArrayOf(it.toFloat(), 0.5f), "y" to it) }

    @Test
    fun `the newest rows are kept, in order, over restarts`() {
        open().use { it.addAll(1, 2) }
        open().use {
            it.addAll(3, 4, 5)
            assertEquals(listOf(3L, 4L, 5L), it.labels())
        }
        open().use {
            assertEquals(listOf(3L, 4L, 5L), it.labels())
            assertArrayEquals(floatArrayOf(4f, 0.5f), it.take(listOf(1)).getValue("x").floats())
            it.addAll(6)
            assertEquals(listOf(4L, 5L, 6L), it.labels())
        }
    }

    @Test
    fun `rows that are too old are gone from the disk as well`() {
        open(ttlS = 10.0).use {
            it.addAll(1)
            now += 6
            it.addAll(2)
            val before = file.readBytes()
            now += 6
            assertEquals(listOf(2L), it.labels())
            assertFalse(before.contentEquals(file.readBytes()))
        }
        open().use { assertEquals(listOf(2L), it.labels()) }
    }

    @Test
    fun `nothing of a row can be read in the file`() {
        open().use { store -> repeat(3) { store.add("x" to floatArrayOf(1.25f, 1.25f), "y" to 77L) } }
        val plain = Tensor.of(floatArrayOf(1.25f, 1.25f)).data.toList()
        assertFalse(file.readBytes().toList().windowed(8).any { it == plain })
    }

    @Test
    fun `erasing takes the key first`() {
        open().use {
            it.addAll(1, 2)
            val sealed = file.readBytes()
            val old = key.readBytes()
            it.erase()
            assertEquals(0, it.count)
            assertFalse(old.contentEquals(key.readBytes()))
            it.addAll(9)
            assertEquals(listOf(9L), it.labels())
            assertTrue(file.length() < sealed.size)
        }
        open().use { assertEquals(listOf(9L), it.labels()) }
    }

    @Test
    fun `rows that go while they are trained on are left out`() {
        open().use {
            it.addAll(1, 2, 3)
            val listed = it.snapshot()
            it.addAll(4, 5)
            assertEquals(listOf(3L), listed.take(listOf(0, 1, 2)).getValue("y").longs().toList())
        }
    }

    @Test
    fun `a damaged row is left out`() {
        open().use { it.addAll(1, 2, 3) }
        val bytes = file.readBytes()
        bytes[bytes.size - 1] = (bytes.last() + 1).toByte()
        file.writeBytes(bytes)
        open().use { assertEquals(listOf(1L, 2L), it.labels()) }
    }

    @Test
    fun `what does not fit is refused by name`() {
        open().use { store ->
            val wrong = listOf(
                arrayOf<Pair<String, Any>>("x" to floatArrayOf(1f, 2f)),
                arrayOf("x" to floatArrayOf(1f), "y" to 1L),
                arrayOf("x" to floatArrayOf(1f, Float.NaN), "y" to 1L),
                arrayOf("x" to floatArrayOf(1f, 2f), "y" to 1.5),
                arrayOf("x" to longArrayOf(1, 2), "y" to 1L),
            )
            for (fields in wrong) assertThrows(StoreError::class.java) { store.add(*fields) }
            assertEquals(0, store.count)
        }
    }

    @Test
    fun `another schema, cap or key is refused`() {
        open().use { it.addAll(1) }
        assertThrows(StoreError::class.java) { ExampleStore(file, mapOf("x" to f32(3), "y" to i64())) }
        assertThrows(StoreError::class.java) { open(maxRows = 4) }
        key.writeBytes(ByteArray(32))
        assertThrows(StoreError::class.java) { open() }
        key.delete()
        assertThrows(StoreError::class.java) { open() }
    }

    @Test
    fun `what was erased on a full disk is gone, and the store begins anew when there is room`() {
        var isFull = false
        val real = FileKey(key)
        val place = object : KeyPlace by real {
            override fun save(key: ByteArray) = if (isFull) throw StoreError("no space left on the device") else real.save(key)
        }
        fun store() = ExampleStore(file, schema, 3, keyPlace = place)
        store().use { store ->
            store.addAll(1, 2)
            isFull = true
            assertThrows(StoreError::class.java) { store.erase() }
            assertEquals(0, store.count)
            assertThrows(StoreError::class.java) { store.addAll(3) }
            isFull = false
            store.addAll(4)
        }
        store().use { assertEquals(listOf(4L), it.labels()) }
    }

    @Test
    fun `a share is held out, the same rows after a restart, and never listed to train on`() {
        fun store() = ExampleStore(file, schema, 1_000, holdout = 0.2)
        val heldOut = store().use { store ->
            for (label in 1..500L) store.add("x" to floatArrayOf(0f, 0f), "y" to label)
            store.labels(heldOut = true)
        }
        assertEquals(100.0, heldOut.size.toDouble(), 30.0)
        store().use { store ->
            assertEquals(heldOut, store.labels(heldOut = true))
            assertEquals((1..500L).toSet() - heldOut.toSet(), store.labels(heldOut = false).toSet())
            assertEquals(listOf(500, heldOut.size), listOf(null, true).map { store.count(it) })
            store.add("x" to floatArrayOf(0f, 0f), "y" to 501L)
            assertEquals(listOf(499L, 500L, 501L), store.snapshot(newest = 3).run { take(listOf(0, 1, 2)) }.getValue("y").longs().toList())
        }
        assertThrows(edge.ConfigError::class.java) { ExampleStore(file, schema, holdout = 1.0) }
    }

    private fun ExampleStore.labels(heldOut: Boolean) =
        snapshot(heldOut).run { take((0 until count).toList()) }.getValue("y").longs().toList()
}
