package edge.demo

import edge.android.SealedFiles
import edge.StoreError
import java.nio.ByteBuffer

/**
 * The examples, each in a sealed file of its own: a digit, then its pixels as float32, big-endian.
 *
 * @param most adding to a full shelf drops the oldest.
 */
class SealedShelf(private val files: SealedFiles, private val most: Int = 2_000) : ExampleShelf {
    private val kept = sortedMapOf<String, Example>()
    private var isRead = false

    override fun all(): List<Example> {
        if (!isRead) {
            for (name in files.names().filter { it.startsWith(PREFIX) }) files.read(name)?.let { kept[name] = decoded(name, it) }
            isRead = true
        }
        return kept.values.toList()
    }

    override fun add(example: Example) {
        all()
        val number = if (kept.isEmpty()) 0 else kept.lastKey().removePrefix(PREFIX).toLong() + 1
        val name = PREFIX + number.toString().padStart(NUMBER_DIGITS, '0')
        files.write(name, encoded(example))
        kept[name] = example
        while (kept.size > most) {
            files.delete(kept.firstKey())
            kept.remove(kept.firstKey())
        }
    }

    override fun clear() {
        for (name in files.names().filter { it.startsWith(PREFIX) }) files.delete(name)
        kept.clear()
        isRead = true
    }

    private fun encoded(example: Example): ByteArray {
        val buffer = ByteBuffer.allocate(SIZE_BYTES)
        buffer.put(example.digit.toByte())
        example.pixels.forEach { buffer.putFloat(it) }
        return buffer.array()
    }

    private fun decoded(name: String, content: ByteArray): Example {
        if (content.size != SIZE_BYTES || content[0] !in 0 until Guess.DIGITS) {
            throw StoreError("$name holds no example of this version", "erase the examples")
        }
        val buffer = ByteBuffer.wrap(content)
        val digit = buffer.get().toInt()
        return Example(List(PIXELS) { buffer.getFloat() }, digit)
    }

    private companion object {
        const val PREFIX = "example-"
        const val NUMBER_DIGITS = 12
        const val PIXELS = Drawing.SIDE * Drawing.SIDE
        const val SIZE_BYTES = 1 + 4 * PIXELS
    }
}

/** The choices, in one sealed file: a byte for consent, then the coordinator's address. */
class SealedChoices(private val files: SealedFiles) : Choices {
    override var consenting: Boolean
        get() = files.read(NAME)?.firstOrNull() == 1.toByte()
        set(value) = write(value, coordinator)

    override var coordinator: String
        get() = files.read(NAME)?.let { String(it, 1, it.size - 1) }.orEmpty()
        set(value) = write(consenting, value)

    private fun write(consenting: Boolean, coordinator: String) {
        files.write(NAME, byteArrayOf(if (consenting) 1 else 0) + coordinator.toByteArray())
    }

    private companion object {
        const val NAME = "choices"
    }
}
