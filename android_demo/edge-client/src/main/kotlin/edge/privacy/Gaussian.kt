package edge.privacy

import edge.PrivacyError
import edge.secagg.Stream
import kotlin.math.abs
import kotlin.math.sqrt

/**
 * Discrete Gaussian noise wide enough for a fine grid, and sums of real numbers made private with it.
 *
 * A table for a deviation of 450,000 would not fit a cache. Draws of a small one are joined instead: with X and Y discrete
 * Gaussian, k X + Y is one again but for a relative error below 2^-127 at the scales here (Micciancio and Walter 2017).
 */
internal object Gaussian {
    private const val VARIANCE = 128L * 128
    private val SCALES = intArrayOf(1, 59, 3528)
    private const val LARGEST = 4_503_599_627_370_496.0 // 2^52
    private const val BLOCK = 1 shl 15

    /** Standard deviation of a wide draw, about 451,600. */
    private val DEVIATION = sqrt(VARIANCE.toDouble() * SCALES.sumOf { it.toLong() * it })

    /**
     * [total] rounded to a grid, plus discrete Gaussian noise on it.
     *
     * The grid's step s is chosen so that the deviation is exactly noiseMultiplier * (sensitivity + s * sqrt(length)),
     * which counts in that rounding may move neighbouring totals apart by one step in each coordinate. What comes out is
     * an integer times the step, whatever the total was: its last bits tell nothing (Mironov 2012). [stream] is secret,
     * and used for nothing else. Raises PrivacyError: a multiplier or total out of range.
     */
    fun noised(total: DoubleArray, sensitivity: Double, noiseMultiplier: Double, stream: Stream): DoubleArray {
        if (!(noiseMultiplier > 0 && sensitivity > 0 && sensitivity < Double.POSITIVE_INFINITY)) {
            throw PrivacyError("noise multiplier $noiseMultiplier and sensitivity $sensitivity must be positive")
        }
        val root = sqrt(total.size.toDouble())
        val steps = DEVIATION / noiseMultiplier - root
        if (steps < root) {
            throw PrivacyError(
                "a noise multiplier of $noiseMultiplier is too large for ${total.size} coordinates",
                "train fewer parameters, or use less noise",
            )
        }
        val step = sensitivity / steps
        // Also false for NaN.
        if (!total.all { abs(it) / step < LARGEST }) {
            throw PrivacyError("a total is too large, or not finite", "lower the learning rate")
        }
        val found = DoubleArray(total.size)
        for (start in total.indices step BLOCK) {
            val noise = wide(minOf(BLOCK, total.size - start), stream)
            // Integers, though of floating type: sums of integers below 2^53 are exact.
            for (i in noise.indices) found[start + i] = (Math.rint(total[start + i] / step) + noise[i]) * step
        }
        return found
    }

    /** Draws of the discrete Gaussian of deviation [DEVIATION]: three of the small one for each. */
    private fun wide(count: Int, stream: Stream): LongArray {
        val total = LongArray(count)
        for (scale in SCALES) {
            val drawn = Noise.sample(Mechanism.DISCRETE_GAUSSIAN, VARIANCE, count, stream)
            for (i in drawn.indices) total[i] += drawn[i].toLong() * scale
        }
        return total
    }
}
