package edge.privacy

import edge.LocalProtocolError
import edge.secagg.Stream
import edge.secagg.Suite
import kotlin.math.sqrt

/**
 * The random rotation that spreads an update over all coordinates: random signs, then Walsh-Hadamard.
 *
 * It keeps length and 2-norm, and makes every coordinate small, so that few bits hold the sum. A transform takes 2^p
 * coordinates; an update of d others is rotated twice: its first m coordinates, m the largest power of two that is at
 * most d, and then its last m, which overlap. The signs are public and the same for all devices of a round. Knows nothing
 * of privacy.
 */
public object Rotate {
    private val SIGNS = Suite.label("rotation")

    /** m, the largest power of two that is at most [length]. */
    public fun blockLength(length: Int): Int {
        if (length < 1) throw LocalProtocolError("an update has at least one coordinate, not $length")
        return Integer.highestOneBit(length)
    }

    /** The rotation of a vector, as a new one of the same length. */
    public fun rotate(values: FloatArray, ctx: ByteArray): FloatArray {
        val block = blockLength(values.size)
        val signs = Signs(ctx, if (block == values.size) block else 2 * block)
        val rotated = values.copyOf()
        mix(rotated, 0, block, signs, 0)
        if (block < values.size) mix(rotated, values.size - block, block, signs, block)
        return rotated
    }

    /** Multiplies [count] values from [start] on by the signs from [firstSign] on, and transforms them, in place. */
    private fun mix(values: FloatArray, start: Int, count: Int, signs: Signs, firstSign: Int) {
        for (i in 0 until count) if (signs.isMinus(firstSign + i)) values[start + i] = -values[start + i]
        hadamard(values, start, count)
        val factor = (1 / sqrt(count.toDouble())).toFloat()
        for (i in start until start + count) values[i] *= factor
    }

    /** The unnormalised Walsh-Hadamard transform (natural order) of 2^p values, in place. */
    internal fun hadamard(values: FloatArray, start: Int, count: Int) {
        if (count < 1 || count and (count - 1) != 0) {
            throw LocalProtocolError("a Walsh-Hadamard transform takes 2^p values, not $count")
        }
        var half = 1
        while (half < count) {
            for (pair in start until start + count step 2 * half) {
                for (i in pair until pair + half) {
                    val a = values[i]
                    val b = values[i + half]
                    values[i] = a + b
                    values[i + half] = a - b
                }
            }
            half *= 2
        }
    }

    /** The signs of a round: bit i of the stream, from the lowest bit of the first byte on; 1 is minus. */
    internal class Signs(ctx: ByteArray, count: Int) {
        private val bits = Stream(Suite.digest(SIGNS, ctx)).bytes((count + 7) / 8)

        fun isMinus(index: Int): Boolean = bits[index shr 3].toInt() shr (index and 7) and 1 == 1
    }
}
