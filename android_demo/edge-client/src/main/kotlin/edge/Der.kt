package edge

import java.math.BigInteger

/**
 * The little of DER (X.690) that certificate requests, signatures and names take.
 *
 * Bouncy Castle has it all, in 130 classes and 80 KB that an app would carry for these few lines.
 */
internal object Der {
    private const val SEQUENCE = 0x30
    private const val SET = 0x31
    private const val LONG_FORM = 0x80

    /** UTF8String, PrintableString and IA5String: all of them are read as UTF-8. */
    private val TEXTS = setOf(0x0c, 0x13, 0x16)

    /** id-at-commonName, 2.5.4.3. */
    val COMMON_NAME: ByteArray = element(6, byteArrayOf(0x55, 4, 3))

    /** id-at-organizationalUnitName, 2.5.4.11. */
    val ORGANISATIONAL_UNIT: ByteArray = element(6, byteArrayOf(0x55, 4, 11))

    /** ecdsa-with-SHA256, 1.2.840.10045.4.3.2. */
    val ECDSA_WITH_SHA256: ByteArray = element(6, BigInteger("2a8648ce3d040302", 16).toByteArray())

    /** One element: its tag, the length, and the contents one after another. */
    fun element(tag: Int, vararg contents: ByteArray): ByteArray {
        val content = contents.fold(ByteArray(0), ByteArray::plus)
        val length = if (content.size < LONG_FORM) {
            byteArrayOf(content.size.toByte())
        } else {
            val bytes = BigInteger.valueOf(content.size.toLong()).toByteArray().dropWhile { it == 0.toByte() }.toByteArray()
            byteArrayOf((LONG_FORM or bytes.size).toByte()) + bytes
        }
        return byteArrayOf(tag.toByte()) + length + content
    }

    fun sequence(vararg items: ByteArray): ByteArray = element(SEQUENCE, *items)

    fun set(vararg items: ByteArray): ByteArray = element(SET, *items)

    fun integer(value: BigInteger): ByteArray = element(2, value.toByteArray())

    fun bits(content: ByteArray): ByteArray = element(3, byteArrayOf(0), content)

    fun text(value: String): ByteArray = element(0x0c, value.toByteArray())

    /**
     * The values of one type, as an OBJECT IDENTIFIER's element, in a distinguished name.
     *
     * Raises IllegalArgumentException: it is no name in DER, or such a value is no text.
     */
    fun valuesOf(name: ByteArray, type: ByteArray): List<String> =
        read(only(read(name), SEQUENCE)).flatMap { relative ->
            read(only(listOf(relative), SET)).mapNotNull { pair ->
                val (found, value) = read(only(listOf(pair), SEQUENCE)).also { require(it.size == 2) { "a name of odd parts" } }
                if (found.whole.contentEquals(type)) textOf(value) else null
            }
        }

    private fun textOf(value: Element): String {
        require(value.tag in TEXTS) { "a name that is no text" }
        return value.content.toString(Charsets.UTF_8)
    }

    private fun only(elements: List<Element>, tag: Int): ByteArray {
        require(elements.size == 1 && elements[0].tag == tag) { "no distinguished name" }
        return elements[0].content
    }

    private class Element(val tag: Int, val whole: ByteArray, val content: ByteArray)

    /** The elements that the bytes are, one after another. */
    private fun read(bytes: ByteArray): List<Element> {
        val found = ArrayList<Element>()
        var at = 0
        while (at < bytes.size) {
            var from = at + 2
            require(from <= bytes.size) { "cut off" }
            var length = bytes[at + 1].toInt() and 0xff
            if (length >= LONG_FORM) {
                val count = length - LONG_FORM
                require(count in 1..3 && from + count <= bytes.size) { "a length of $count bytes" }
                length = BigInteger(1, bytes.copyOfRange(from, from + count)).toInt()
                from += count
            }
            require(length <= bytes.size - from) { "cut off" }
            val end = from + length
            found += Element(bytes[at].toInt() and 0xff, bytes.copyOfRange(at, end), bytes.copyOfRange(from, end))
            at = end
        }
        return found
    }
}
