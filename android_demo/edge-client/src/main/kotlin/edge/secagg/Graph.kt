package edge.secagg

import edge.LocalProtocolError
import kotlin.math.ln
import kotlin.math.pow

/**
 * Who shares and masks with whom: what makes degree and threshold of the SecAgg+ graph sound, and the neighbours.
 *
 * The graph is Harary's of even degree k over a random cyclic order: each device's neighbours are the k/2 before it and
 * the k/2 after it (Bell et al. 2020, "Secure Single-Server Aggregation with (Poly)Logarithmic Overhead"). Knows no
 * keys; choosing the parameters is the coordinator's affair.
 */
public object Graph {
    /** Shares lie at the points index+1 of GF(2^16), zero excepted. */
    public const val LARGEST_ROSTER: Int = 65_535

    /** A round's graph fails to protect with a chance of at most 2^-40. */
    internal const val SECURITY_BITS = 40

    /**
     * Whether a roster's degree and threshold keep the security that a device insists on.
     *
     * Checks that the honest devices that stay are connected, that the corrupt neighbours' shares stay below the
     * threshold, and, with [twoSurvivorSets], that no two survivor sets can both reach it.
     */
    public fun isSound(
        size: Int,
        degree: Int,
        threshold: Int,
        corruptShare: Double,
        twoSurvivorSets: Boolean = true,
        dropoutShare: Double = 0.0,
    ): Boolean {
        Chances.checkShares(corruptShare, dropoutShare)
        if (size !in 2..LARGEST_ROSTER || degree !in 1 until size || threshold !in 1..degree) return false
        val corrupt = Chances.count(corruptShare, size)
        val bound = when {
            degree == size - 1 -> corrupt
            degree % 2 != 0 || !isConnected(size, degree, corrupt + Chances.count(dropoutShare, size)) -> return false
            else -> colludingNeighbours(size, degree, corruptShare)
        }
        return threshold >= minimumThreshold(degree, bound, twoSurvivorSets)
    }

    /**
     * The cyclic order of 0..size-1 that a 32-byte seed gives.
     *
     * Each index draws a 64-bit integer from the seed's stream; the order is by (integer, index).
     */
    public fun permutation(size: Int, seed: ByteArray): IntArray {
        val words = Stream(seed).uint64(size)
        // Unsigned order: with the top bit flipped it is the signed one. The sort is stable, so equal words keep index order.
        return (0 until size).sortedBy { words[it] xor Long.MIN_VALUE }.toIntArray()
    }

    /** The sorted neighbours of one device; all others where degree >= size-1. */
    public fun neighbours(size: Int, degree: Int, index: Int, seed: ByteArray): List<Int> {
        if (index !in 0 until size) throw LocalProtocolError("no device has index $index of $size")
        if (degree >= size - 1) return (0 until size).filter { it != index }
        if (degree < 2 || degree % 2 != 0) throw LocalProtocolError("a ring graph has an even degree, not $degree")
        val order = permutation(size, seed)
        val position = order.indexOf(index)
        return (1..degree / 2)
            .flatMap { listOf(order[(position + it) % size], order[(position - it + size) % size]) }
            .sorted()
    }

    /** Two disjoint sets of shares reach t only if 2t <= k + t1: corrupt neighbours answer both. */
    internal fun minimumThreshold(degree: Int, corruptBound: Int, twoSurvivorSets: Boolean): Int =
        if (twoSurvivorSets) (degree + corruptBound) / 2 + 1 else corruptBound + 1

    /** Bounds the chance that two gaps of degree/2 lost devices cut the ring, over all pairs of places. */
    internal fun isConnected(size: Int, degree: Int, lost: Int): Boolean {
        if (degree > lost) return true
        val logs = Chances.logFactorials(size)
        val logPairs = ln(size.toDouble()) + ln(maxOf(size - degree - 1, 1).toDouble()) - ln(2.0)
        val logAllLost = logs[lost] + logs[size - degree] - logs[size] - logs[lost - degree]
        return logPairs + logAllLost < -(SECURITY_BITS + 1) * ln(2.0)
    }

    /** The least t1 with P[more than t1 corrupt neighbours] <= 2^-41 / size. */
    internal fun colludingNeighbours(size: Int, degree: Int, corruptShare: Double): Int {
        val limit = 2.0.pow(-(SECURITY_BITS + 1)) / size
        return Chances.tails(size, Chances.count(corruptShare, size), degree).count { it > limit } - 1
    }
}
