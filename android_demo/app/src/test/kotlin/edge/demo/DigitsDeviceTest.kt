package edge.demo

import edge.StoreError
import edge.android.KeystoreKeyPlace
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

class DigitsDeviceTest {
    @TempDir
    lateinit var folder: File

    private fun device(key: Int = 1) = DigitsDevice(
        home = File(folder, "edge"),
        keyPlace = { KeystoreKeyPlace(it) { SecretKeySpec(ByteArray(32) { key.toByte() }, "AES") } },
        signer = "no key",
        startingModel = { ByteArray(0) },
    )

    private fun example(digit: Int) = Example(Shapes.digits[digit].pixels()!!.toList(), digit)

    @Test
    fun `examples are there for the next process, oldest first, and nowhere readable on the disk`() {
        device().use { device -> (0..9).forEach { device.add(example(it)) } }
        device().use { assertEquals((0..9).map(::example), it.all()) }
        val key = File(folder, "edge/digits.examples.key").readBytes()
        assertEquals("EDGS", String(key, 0, 4))
    }

    @Test
    fun `without the phone's key nothing can be read`() {
        device().use { it.add(example(1)) }
        assertThrows(StoreError::class.java) { device(key = 2).use { it.all() } }
    }

    @Test
    fun `erased examples are gone, and the next ones are kept`() {
        device().use { device ->
            device.add(example(1))
            device.clear()
            assertEquals(emptyList<Example>(), device.all())
            device.add(example(2))
        }
        device().use { assertEquals(listOf(2), it.all().map(Example::digit)) }
    }

    @Test
    fun `withdrawing without ever having taken part erases the examples`() {
        device().use { device ->
            device.add(example(1))
            device.withdraw()
            assertEquals(emptyList<Example>(), device.all())
        }
    }

    @Test
    fun `a model that is not the publisher's is not used, and the app goes on`() {
        device().use { device ->
            assertEquals(ModelProblem.BAD_MODEL, device.problem)
            assertNull(device.version)
            assertNull(device.predict(FloatArray(64)))
            device.add(example(1))
            assertEquals(1, device.all().size)
        }
    }

    @Test
    fun `a device that nobody invited takes part in nothing`() {
        device().use { device ->
            var asked = false
            assertFalse(device.run { true.also { asked = true } })
            assertFalse(asked)
            assertTrue(device.participations().isEmpty())
        }
    }

    @Test
    fun `a wrapped key comes back as it was, and not once it was erased`() {
        val place = KeystoreKeyPlace(File(folder, "k")) { SecretKeySpec(ByteArray(32), "AES") }
        assertNull(place.load())
        val key = ByteArray(32) { it.toByte() }
        place.save(key)
        assertArrayEquals(key, place.load())
        place.erase()
        assertNull(place.load())
    }
}
