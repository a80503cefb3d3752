package edge.privacy

import edge.Coded
import edge.PrivacyError
import edge.secagg.Stream
import java.math.BigInteger

/** The noise that each device adds its share of. */
public enum class Mechanism(override val code: Int) : Coded { NONE(0), SKELLAM(1), DISCRETE_GAUSSIAN(2) }

/**
 * Integer noise by inversion of an integer table, with no floating-point number anywhere (PROTOCOL.md 4.4).
 *
 * Tables are computed with big integers and floor divisions only, so that every language gets them bit for bit;
 * floating-point noise would leak (Mironov 2012). Knows nothing of updates.
 */
public object Noise {
    public const val MAXIMUM_VARIANCE: Long = 1L shl 28

    private const val KEPT = 4
    private val latest = ArrayDeque<NoiseTable>()

    /**
     * [count] draws of a mechanism's noise; zeros for variance 0 and for no mechanism.
     *
     * Takes from the stream: count 16-bit integers, the top bits of every u; then a 64-bit integer for each value they
     * leave open, in order, its top 48 bits the next bits of u; then, for each still open, a 64-bit integer, the last
     * bits of u. Raises PrivacyError where the variance is negative or above 2^28.
     */
    public fun sample(mechanism: Mechanism, variance: Long, count: Int, stream: Stream): IntArray {
        if (variance == 0L || mechanism == Mechanism.NONE) return IntArray(count)
        val table = table(mechanism, variance)
        val drawn = stream.uint16(count)
        val open = ArrayList<Int>()
        val tops = ArrayList<Int>()
        for (place in drawn.indices) {
            val top = drawn[place]
            drawn[place] = table.prefix[top]
            if (drawn[place] == NoiseTable.OPEN) {
                open.add(place)
                tops.add(top)
            }
        }
        val found = refine(table, tops, stream)
        for (i in open.indices) drawn[open[i]] = found[i]
        return drawn
    }

    /** The values of draws whose top 16 bits leave them open. */
    private fun refine(table: NoiseTable, tops: List<Int>, stream: Stream): IntArray {
        val fresh = stream.uint64(tops.size)
        val counts = IntArray(tops.size)
        val ties = ArrayList<Int>()
        for (i in tops.indices) {
            val word = (tops[i].toLong() shl 48) or (fresh[i] ushr 16)
            fresh[i] = word
            counts[i] = firstAbove(table.high, word, table.below[tops[i]], table.below[tops[i] + 1])
            if (counts[i] > 0 && table.high[counts[i] - 1] == word) ties.add(i)
        }
        val last = stream.uint64(ties.size)
        for ((position, i) in ties.withIndex()) {
            var first = counts[i]
            while (first > 0 && table.high[first - 1] == fresh[i]) first--
            counts[i] = firstAbove(table.low, last[position], first, counts[i])
        }
        return IntArray(tops.size) { counts[it] - table.half }
    }

    /** The first place in from..to whose word, unsigned, is above [word]; the words ascend. */
    private fun firstAbove(words: LongArray, word: Long, from: Int, to: Int): Int {
        var low = from
        var high = to
        while (low < high) {
            val middle = (low + high) ushr 1
            if (words[middle] xor Long.MIN_VALUE <= word xor Long.MIN_VALUE) low = middle + 1 else high = middle
        }
        return low
    }

    /** The table of one mechanism and variance; the latest few are kept. */
    @Synchronized
    internal fun table(mechanism: Mechanism, variance: Long): NoiseTable {
        if (variance !in 1..MAXIMUM_VARIANCE) {
            throw PrivacyError(
                "a noise variance of $variance is not in 1..2^28",
                "choose a smaller scale or fewer bits",
            )
        }
        latest.find { it.mechanism == mechanism && it.variance == variance }?.let { return it }
        if (latest.size == KEPT) latest.removeFirst()
        return NoiseTable(mechanism, variance).also { latest.addLast(it) }
    }
}

/** The integer distribution function of one noise, and the values its top 16 bits decide. */
internal class NoiseTable(val mechanism: Mechanism, val variance: Long) {
    /** The support is -half..half. */
    val half: Int

    /** Top and bottom 64 bits of the 128-bit entries for -half..half-1, ascending. */
    val high: LongArray
    val low: LongArray

    /** For each top 16 bits of u the value drawn, or [OPEN] where they do not decide it. */
    val prefix = IntArray(TOPS)

    /** For each top 16 bits the entries whose own are less; one more at the end. */
    val below = IntArray(TOPS + 1)

    init {
        val root = isqrt(variance)
        half = 14 * root + 74
        val weights = if (mechanism == Mechanism.DISCRETE_GAUSSIAN) gaussian() else bessel(root)
        val total = weights.fold(BigInteger.ZERO, BigInteger::add).shiftLeft(1).subtract(weights[0])
        high = LongArray(2 * half)
        low = LongArray(2 * half)
        var cumulative = BigInteger.ZERO
        for (value in -half until half) {
            cumulative = cumulative.add(weights[Math.abs(value)])
            val entry = cumulative.shiftLeft(128).divide(total).min(LARGEST_ENTRY)
            high[value + half] = entry.shiftRight(64).toLong()
            low[value + half] = entry.toLong()
            below[(high[value + half] ushr 48).toInt() + 1]++
        }
        for (top in 0 until TOPS) {
            prefix[top] = if (below[top + 1] > 0) OPEN else below[top] - half
            below[top + 1] += below[top]
        }
    }

    /** Multiples of the Bessel functions I_0(v) ... I_half(v), each rounded down (Miller's backward recurrence). */
    private fun bessel(root: Int): List<BigInteger> {
        var above = BigInteger.ZERO
        var current = ONE
        val divisor = BigInteger.valueOf(variance)
        val weights = ArrayList<BigInteger>()
        for (order in half + 6 * root + 80 downTo 1) {
            val next = above.add(current.multiply(BigInteger.valueOf(2L * order)).divide(divisor))
            above = current
            current = next
            if (order <= half + 1) weights.add(current)
        }
        return weights.asReversed()
    }

    /** Multiples of exp(-k^2 / (2v)) for k = 0 ... half, as powers k^2 = 1 + 3 + ... + (2k-1) of exp(-1/(2v)). */
    private fun gaussian(): List<BigInteger> {
        var base = BigInteger.ZERO
        var term = ONE
        var order = 0L
        while (term.signum() > 0) {
            base = if (order % 2 == 1L) base.subtract(term) else base.add(term)
            order++
            term = term.divide(BigInteger.valueOf(2 * variance * order))
        }
        val step = base.multiply(base).shiftRight(GUARD_BITS)
        val weights = arrayListOf(ONE)
        var factor = base
        repeat(half) {
            weights.add(weights.last().multiply(factor).shiftRight(GUARD_BITS))
            factor = factor.multiply(step).shiftRight(GUARD_BITS)
        }
        return weights
    }

    companion object {
        const val OPEN: Int = Int.MIN_VALUE
        private const val TOPS = 1 shl 16
        private const val GUARD_BITS = 256
        private val ONE = BigInteger.ONE.shiftLeft(GUARD_BITS)
        private val LARGEST_ENTRY = BigInteger.ONE.shiftLeft(128).subtract(BigInteger.ONE)

        private fun isqrt(value: Long): Int {
            var root = Math.sqrt(value.toDouble()).toLong()
            while (root * root > value) root--
            while ((root + 1) * (root + 1) <= value) root++
            return root.toInt()
        }
    }
}
