package edge.secagg

import edge.LocalProtocolError
import java.nio.ByteBuffer
import java.nio.ByteOrder
import javax.crypto.Cipher

/** The seed of a mask, 32 bytes, and +1 or -1: whether it is added or subtracted. */
public class Mask(internal val seed: ByteArray, internal val sign: Int)

/**
 * Vectors of integers modulo 2^b, 8 <= b <= 32: packing, and masking with a keystream.
 *
 * A vector is an IntArray whose bits from b on mean nothing until [reduce]: reducing commutes with additions modulo
 * 2^32, so it is done once, at the end. Knows no keys' meaning.
 */
public object Modular {
    public const val MINIMUM_BITS: Int = 8
    public const val MAXIMUM_BITS: Int = 32
    public const val SEED_BYTES: Int = 32
    private const val CHUNK_BYTES = 1 shl 16

    /** The bits of the words that a mask for this modulus is read in: 16 up to 16 bits, else 32. */
    public fun workBits(bits: Int): Int = if (checked(bits) <= 16) 16 else 32

    /** The residues modulo 2^bits of any integer vector, as a new vector. */
    public fun reduce(vector: IntArray, bits: Int): IntArray {
        val mask = lowBits(bits)
        return IntArray(vector.size) { vector[it] and mask }
    }

    /** The size of [length] packed values of [bits] bits. */
    public fun packedBytes(length: Int, bits: Int): Int = ((length.toLong() * bits + 7) / 8).toInt()

    /**
     * The low [bits] bits of each value, the first value in the lowest bits of the first byte.
     *
     * The unused high bits of the last byte are zero.
     */
    public fun pack(vector: IntArray, bits: Int): ByteArray {
        val mask = lowBits(bits).toLong() and 0xffffffffL
        val packed = ByteArray(packedBytes(vector.size, bits))
        var held = 0L
        var count = 0
        var at = 0
        for (value in vector) {
            held = held or (value.toLong() and mask shl count)
            count += bits
            while (count >= 8) {
                packed[at++] = held.toByte()
                held = held ushr 8
                count -= 8
            }
        }
        if (count > 0) packed[at] = held.toByte()
        return packed
    }

    /**
     * Adds or subtracts the masks in place, in words of [wordBits] bits.
     *
     * A mask is the AES-128-CTR keystream of key seed[0..16) and initial counter block seed[16..32), read as
     * little-endian words. Raises LocalProtocolError where a seed is not 32 bytes or a sign is not +1 or -1.
     */
    public fun addMasks(accumulator: IntArray, wordBits: Int, masks: List<Mask>) {
        val streams = masks.map { keystream(it) to it.sign }
        val wordBytes = wordBits / 8
        val zeros = ByteArray(minOf(CHUNK_BYTES, accumulator.size * wordBytes))
        val output = ByteArray(zeros.size)
        val step = maxOf(1, zeros.size / wordBytes)
        val words = ByteBuffer.wrap(output).order(ByteOrder.LITTLE_ENDIAN)
        var start = 0
        // All masks are added to one piece before the next, so that the piece stays in the cache.
        while (start < accumulator.size) {
            val count = minOf(step, accumulator.size - start)
            for ((stream, sign) in streams) {
                stream.update(zeros, 0, count * wordBytes, output)
                if (wordBytes == 4) {
                    for (i in 0 until count) accumulator[start + i] += sign * words.getInt(4 * i)
                } else {
                    for (i in 0 until count) accumulator[start + i] += sign * words.getShort(2 * i)
                }
            }
            start += count
        }
    }

    private fun keystream(mask: Mask): Cipher {
        if (mask.seed.size != SEED_BYTES || (mask.sign != 1 && mask.sign != -1)) {
            throw LocalProtocolError(
                "a mask has a 32-byte seed and a sign, not ${mask.seed.size} bytes and ${mask.sign}",
            )
        }
        return Suite.keystream(mask.seed.copyOfRange(0, 16), mask.seed.copyOfRange(16, 32))
    }

    private fun lowBits(bits: Int): Int = -1 ushr (32 - checked(bits))

    private fun checked(bits: Int): Int {
        if (bits !in MINIMUM_BITS..MAXIMUM_BITS) {
            throw LocalProtocolError("a modulus of $bits bits is not supported", "use 8 to 32 bits")
        }
        return bits
    }
}
