package edge.secagg

import edge.PrivacyError
import kotlin.math.exp
import kotlin.math.floor
import kotlin.math.ln

/** How many of a kind are among those drawn: what degrees, thresholds and committees come from. Knows no graph. */
internal object Chances {
    private const val ROUNDING = 1e-9 // so that .05 * 200 counts as 10
    private var table = DoubleArray(1)

    /** How many devices of [size] a share is. */
    fun count(share: Double, size: Int): Int = floor(share * size + ROUNDING).toInt()

    fun checkShares(corruptShare: Double, dropoutShare: Double) {
        if (!(corruptShare >= 0 && corruptShare < 1 && dropoutShare >= 0 && dropoutShare < 1)) {
            throw PrivacyError(
                "shares of $corruptShare corrupt and $dropoutShare dropped are not both in [0, 1)",
                "give shares such as 0.1",
            )
        }
    }

    /** P[i marked] for i = 0..drawn, when [drawn] of [size] are drawn and [marked] are marked. */
    fun hypergeometric(size: Int, marked: Int, drawn: Int): DoubleArray {
        val logs = logFactorials(size)
        val chances = DoubleArray(drawn + 1)
        for (i in maxOf(0, drawn - (size - marked))..minOf(drawn, marked)) {
            chances[i] = exp(
                logs[marked] - logs[i] - logs[marked - i] +
                    logs[size - marked] - logs[drawn - i] - logs[size - marked - drawn + i] -
                    (logs[size] - logs[drawn] - logs[size - drawn]),
            )
        }
        return chances
    }

    /** P[at least i marked] for i = 0..drawn. */
    fun tails(size: Int, marked: Int, drawn: Int): DoubleArray {
        val tails = hypergeometric(size, marked, drawn)
        for (i in tails.size - 2 downTo 0) tails[i] += tails[i + 1]
        return tails
    }

    /** ln(i!) for i = 0 to at least [size]. */
    @Synchronized
    fun logFactorials(size: Int): DoubleArray {
        if (table.size <= size) {
            val longer = DoubleArray(size + 1)
            for (i in 1..size) longer[i] = longer[i - 1] + ln(i.toDouble())
            table = longer
        }
        return table
    }
}
