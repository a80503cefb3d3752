package edge.privacy

import edge.PrivacyError
import edge.secagg.Stream
import kotlin.math.exp
import kotlin.math.floor
import kotlin.math.ln
import kotlin.math.ln1p

/**
 * Noisy sums over Poisson samples of a device's examples, as an accountant needs to know them.
 *
 * [noiseMultiplier] is the standard deviation of the noise over the largest norm of one example's part of a sum; [rate] the
 * chance of each example to be in a step's sample; [steps] the sums released.
 */
public data class Sampling(val noiseMultiplier: Double, val rate: Double, val steps: Long)

/**
 * Poisson sampling of examples, and what noisy sums over such samples cost: differentially private SGD on one device.
 *
 * Neighbouring data sets differ by one example that is there or not. Renyi divergences of integer orders: Mironov, Talwar
 * and Zhang 2019, "Renyi Differential Privacy of the Sampled Gaussian Mechanism", section 3.3.
 */
public object Subsampled {
    private const val WORDS = 18_446_744_073_709_551_616.0 // 2^64

    /**
     * The ascending places, of [count], that are drawn independently with chance [rate].
     *
     * Takes eight bytes of the stream for each place. Raises PrivacyError where the rate is not in (0, 1].
     */
    public fun poissonSample(count: Int, rate: Double, stream: Stream): List<Int> {
        checkRate(rate)
        val words = stream.uint64(count)
        val limit = floor(rate * WORDS)
        if (limit >= WORDS) return (0 until count).toList()
        // Below 2^64 and whole, so exact; as unsigned bits.
        val bits = limit.toBigDecimal().toBigInteger().toLong()
        return (0 until count).filter { java.lang.Long.compareUnsigned(words[it], bits) < 0 }
    }

    /** The least epsilon for which all these sums together are (epsilon, delta)-DP for each example; 0 for none. */
    public fun sampledEpsilon(samplings: List<Sampling>, delta: Double): Double {
        if (!(delta > 0 && delta < 1)) throw PrivacyError("a delta of $delta is not between 0 and 1")
        val total = DoubleArray(Accounting.ORDERS.size)
        for (one in samplings.filter { it.steps > 0 }) {
            val divergences = sampledDivergences(one.noiseMultiplier, one.rate)
            for (i in total.indices) total[i] += one.steps * divergences[i]
        }
        return if (total.any { it > 0 }) Accounting.epsilonOf(total, delta) else 0.0
    }

    /**
     * The Renyi divergence of one noisy sum at each order.
     *
     * log(sum_{k=0}^{a} binomial(a, k) (1-q)^(a-k) q^k exp((k^2 - k) / (2 z^2))) / (a - 1) for order a. The sum is one more
     * than that with exp(...) - 1, whose terms are all positive: so nothing cancels, however small q is.
     */
    private fun sampledDivergences(noiseMultiplier: Double, rate: Double): DoubleArray {
        checkRate(rate)
        if (!(noiseMultiplier > 0 && noiseMultiplier < Double.POSITIVE_INFINITY)) {
            throw PrivacyError("a noise multiplier of $noiseMultiplier has no epsilon", "choose a positive one")
        }
        val inverse = 1 / (2 * noiseMultiplier * noiseMultiplier)
        if (rate == 1.0) return DoubleArray(Accounting.ORDERS.size) { Accounting.ORDERS[it] * inverse }
        val largest = Accounting.ORDERS.last().toInt()
        val factorials = DoubleArray(largest + 1)
        for (k in 1..largest) factorials[k] = factorials[k - 1] + ln(k.toDouble())
        val shared = DoubleArray(largest + 1) { k ->
            val exponent = (k.toDouble() * k - k) * inverse
            if (k < 2) Double.NEGATIVE_INFINITY else k * ln(rate) + exponent + ln(-Math.expm1(-exponent)) - factorials[k]
        }
        return DoubleArray(Accounting.ORDERS.size) { place ->
            val order = Accounting.ORDERS[place].toInt()
            val logs = DoubleArray(order - 1) { i ->
                val rest = order - 2 - i
                shared[i + 2] + rest * ln1p(-rate) - factorials[rest] + factorials[order]
            }
            val top = maxOf(0.0, logs.maxOrNull() ?: 0.0)
            (top + ln(exp(-top) + logs.sumOf { exp(it - top) })) / (order - 1)
        }
    }

    private fun checkRate(rate: Double) {
        if (!(rate > 0 && rate <= 1)) {
            throw PrivacyError("a sampling rate of $rate is not in (0, 1]", "sample some examples, or all")
        }
    }
}
