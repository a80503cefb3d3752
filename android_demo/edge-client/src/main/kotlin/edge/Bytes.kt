package edge

/**
 * Immutable bytes that are equal by content, as messages and states hold them.
 *
 * Neither the array given nor the one of [array] may be changed afterwards. Text shows the length only: many are secret.
 */
public class Bytes(public val array: ByteArray) {
    public val size: Int get() = array.size

    public fun isEmpty(): Boolean = array.isEmpty()

    override fun equals(other: Any?): Boolean = other is Bytes && array.contentEquals(other.array)

    override fun hashCode(): Int = array.contentHashCode()

    override fun toString(): String = "Bytes($size)"

    /** Lower-case hexadecimal. */
    public fun hex(): String = array.toHex()

    public companion object {
        public val EMPTY: Bytes = Bytes(ByteArray(0))
    }
}

internal fun ByteArray.toHex(): String {
    val digits = "0123456789abcdef"
    val text = StringBuilder(2 * size)
    for (byte in this) text.append(digits[byte.toInt() shr 4 and 15]).append(digits[byte.toInt() and 15])
    return text.toString()
}

/** The bytes of hexadecimal text, or null where it is none. */
internal fun String.fromHex(): ByteArray? {
    if (length % 2 != 0 || any { it.digitToIntOrNull(16) == null }) return null
    return ByteArray(length / 2) { substring(2 * it, 2 * it + 2).toInt(16).toByte() }
}
