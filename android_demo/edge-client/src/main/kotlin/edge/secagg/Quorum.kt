package edge.secagg

import kotlin.math.pow

/**
 * One set of survivors for all, held by a quorum of signatures instead of by the threshold; PROTOCOL.md 3.11 has why.
 *
 * Knows no keys, signatures or messages; choosing the parameters is the coordinator's affair.
 */
public object Quorum {
    /** More colluders than counted with are on a committee with a chance of at most 2^-60. */
    internal const val COMMITTEE_SECURITY_BITS = 60

    /** Whether two quorums of the committee always share a device that does not collude. */
    public fun isSound(size: Int, committee: Int, quorum: Int, corruptShare: Double): Boolean =
        committee in 1..size && quorum in leastQuorum(size, committee, corruptShare)..committee

    /** Who sits on the committee: the first of the indices in the order that a 32-byte seed gives. */
    public fun members(size: Int, committee: Int, seed: ByteArray): Set<Int> =
        Graph.permutation(size, seed).take(committee).toSet()

    /**
     * Whether the honest survivors are one piece of the graph, whoever colludes.
     *
     * A ring falls apart only where two separate runs of degree/2 places hold no honest survivor. So any two runs
     * together must hold more survivors than may collude there.
     */
    public fun holdsTogether(
        size: Int,
        degree: Int,
        survivors: Set<Int>,
        corruptShare: Double,
        seed: ByteArray,
    ): Boolean {
        if (degree >= size - 1) return true
        val order = Graph.permutation(size, seed)
        val marks = IntArray(size) { if (order[it] in survivors) 1 else 0 }
        return fewestInTwoRuns(marks, degree / 2) > cutBound(size, degree, corruptShare)
    }

    /** The smallest sum of the marks in two disjoint runs of a cyclic row. */
    internal fun fewestInTwoRuns(marks: IntArray, run: Int): Int {
        val size = marks.size
        val sums = IntArray(size) // of the run that begins at each place
        sums[0] = (0 until run).sumOf { marks[it] }
        for (i in 1 until size) sums[i] = sums[i - 1] - marks[i - 1] + marks[(i + run - 1) % size]
        // Of the runs that begin run .. size-run places later, the least: a window that slides around the row.
        val width = size - 2 * run + 1
        val window = ArrayDeque<Int>() // places, counted on past the end, of rising sums
        var fewest = Int.MAX_VALUE
        for (end in run until 2 * size) {
            val sum = sums[end % size]
            while (window.isNotEmpty() && sums[window.last() % size] >= sum) window.removeLast()
            window.addLast(end)
            val first = end - (run + width - 1)
            if (window.first() < first + run) window.removeFirst()
            if (first in 0 until size) fewest = minOf(fewest, sums[first] + sums[window.first() % size])
        }
        return fewest
    }

    /** Two quorums of a committee of m with at most c colluders share an honest device if 2q > m + c. */
    internal fun leastQuorum(size: Int, committee: Int, corruptShare: Double): Int {
        val tails = Chances.tails(size, Chances.count(corruptShare, size), committee)
        val colluders = tails.count { it > 2.0.pow(-COMMITTEE_SECURITY_BITS) } - 1
        return (committee + colluders) / 2 + 1
    }

    /** The least B with P[any two runs of degree/2 places hold more than B colluders] <= 2^-41. */
    internal fun cutBound(size: Int, degree: Int, corruptShare: Double): Int {
        val limit = 2.0.pow(-(Graph.SECURITY_BITS + 1)) / pairs(size, degree)
        return Chances.tails(size, Chances.count(corruptShare, size), degree).count { it > limit } - 1
    }

    /** How many pairs of separate runs there are, or a few more. */
    internal fun pairs(size: Int, degree: Int): Double = size * maxOf(size - degree - 1, 1) / 2.0
}
