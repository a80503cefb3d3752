package edge.privacy

import edge.TrainingError
import edge.secagg.Stream
import kotlin.math.floor
import kotlin.math.sqrt

/**
 * Stochastic rounding to integers of bounded norm, without a bias and without a floating-point coin.
 *
 * Knows nothing of clipping or noise.
 */
public object Quantize {
    private const val TRIES = 200
    private const val COIN = 4_294_967_296.0 // 2^32
    private const val BLOCK = 1 shl 14

    /** D1, the largest 1-norm of an integer vector of 2-norm at most [normBound]. */
    internal fun l1Bound(normBound: Double, length: Int): Double = normBound * minOf(sqrt(length.toDouble()), normBound)

    /**
     * scale * values, each rounded up with probability its fraction, else down.
     *
     * The fraction, in 64-bit floats, is compared as a 32-bit integer with 32 bits of the entropy's stream. The whole
     * vector is drawn again, from the same stream, until its squared norm is at most normBound^2. Every
     * |scale * value| is below 2^31; [entropy] is 32 bytes of this use alone. Raises TrainingError where two hundred
     * draws were too long, so that the values cannot have been clipped.
     */
    public fun stochasticRound(values: FloatArray, scale: Double, normBound: Double, entropy: ByteArray): IntArray {
        val rounded = IntArray(values.size)
        val limit = floor(normBound * normBound).toLong()
        val stream = Stream(entropy)
        repeat(TRIES) {
            if (draw(values, scale, stream, rounded) <= limit) return rounded
        }
        throw TrainingError(
            "no rounding of the update has a norm below $normBound",
            "the plan's norm bound does not fit its clip norm, scale and dimension",
        )
    }

    /** One draw of the whole vector; the sum of its squares. */
    private fun draw(values: FloatArray, scale: Double, stream: Stream, rounded: IntArray): Long {
        var square = 0L
        for (start in values.indices step BLOCK) {
            val coins = stream.uint32(minOf(BLOCK, values.size - start))
            for (i in coins.indices) {
                val scaled = values[start + i].toDouble() * scale
                val down = floor(scaled)
                // A tiny negative value has a fraction that rounds to one, which 32 bits do not hold.
                val chance = floor((scaled - down) * COIN).toLong()
                val integer = down.toLong() + if (coins[i].toLong() and 0xffffffffL < chance) 1 else 0
                rounded[start + i] = integer.toInt()
                square += integer * integer
            }
        }
        return square
    }
}
