package edge.privacy

import edge.PrivacyError
import kotlin.math.PI
import kotlin.math.exp
import kotlin.math.floor
import kotlin.math.ln
import kotlin.math.ln1p

/**
 * One sum of integer vectors plus noise.
 *
 * [normBound] is D2, the most one device moves the sum in the 2-norm; [length] the coordinates of the sum;
 * [deviceVariance] that of the noise that each device added, per coordinate; [honest] the devices whose noise is unknown
 * to any attacker.
 */
public data class Release(
    val mechanism: Mechanism,
    val normBound: Double,
    val length: Int,
    val deviceVariance: Long,
    val honest: Int,
) {
    /** Of the noise that is counted on, per coordinate; 0 where there is none. */
    val variance: Long get() = if (mechanism == Mechanism.NONE) 0 else deviceVariance * honest
}

/**
 * A small Renyi-DP accountant for distributed integer noise (PROTOCOL.md 4.7): by it a device checks a plan and keeps its
 * own ledger.
 *
 * Add-or-remove-one device is the neighbouring relation. Skellam: Agarwal, Kairouz and Liu 2021; discrete Gaussian:
 * Kairouz, Liu and Steinke 2021, proposition 14; conversion: Canonne, Kamath and Steinke 2020.
 */
public object Accounting {
    private const val ROUNDING = 1e-9 // so that a tenth of 70 is 7

    /** The Renyi orders looked at; the theorem holds for integers. */
    internal val ORDERS: DoubleArray =
        ((2..256) + (288..1024 step 32) + listOf(2048, 4096, 8192)).map { it.toDouble() }.toDoubleArray()

    /** reports - floor(corruptShare * roster), at least 1: the devices of a sum whose noise is counted on. */
    public fun honestReports(reports: Int, roster: Int, corruptShare: Double): Int =
        maxOf(1, reports - floor(corruptShare * roster + ROUNDING).toInt())

    /** The least epsilon for which so many of each release together are (epsilon, delta)-DP; infinite without noise. */
    public fun composedEpsilon(releases: List<Pair<Release, Long>>, delta: Double): Double {
        if (!(delta > 0 && delta < 1)) throw PrivacyError("a delta of $delta is not between 0 and 1")
        val counted = releases.filter { it.second > 0 }
        if (counted.isEmpty()) return 0.0
        if (counted.any { it.first.variance == 0L }) return Double.POSITIVE_INFINITY
        val total = DoubleArray(ORDERS.size)
        for ((release, count) in counted) {
            val divergences = renyiDivergences(release)
            for (i in total.indices) total[i] += count * divergences[i]
        }
        return epsilonOf(total, delta)
    }

    /** The least epsilon that Renyi divergences at each of [ORDERS] give at delta. */
    internal fun epsilonOf(divergences: DoubleArray, delta: Double): Double =
        maxOf(0.0, ORDERS.indices.minOf { i -> divergences[i] + ln1p(-1 / ORDERS[i]) - ln(delta * ORDERS[i]) / (ORDERS[i] - 1) })

    /** The bound on the Renyi divergence at each of [ORDERS]; raises PrivacyError for no noise or no bound. */
    internal fun renyiDivergences(release: Release): DoubleArray {
        val square = release.normBound * release.normBound
        val mu = release.variance.toDouble()
        if (!(mu > 0 && square < Double.POSITIVE_INFINITY && release.length > 0)) {
            throw PrivacyError(
                "a release with variance $mu and norm bound ${release.normBound} has no epsilon",
                "turn noise on",
            )
        }
        if (release.mechanism == Mechanism.DISCRETE_GAUSSIAN) {
            val gap = sumDivergence(release.deviceVariance, release.honest) * release.length
            return DoubleArray(ORDERS.size) { ORDERS[it] * square / (2 * mu) + gap }
        }
        val l1 = Quantize.l1Bound(release.normBound, release.length)
        return DoubleArray(ORDERS.size) { ORDERS[it] * square / (2 * mu) + skellamCorrection(ORDERS[it], square, l1, mu) }
    }

    /** tau, the max divergence of a sum of discrete Gaussians from the discrete Gaussian of its variance. */
    private fun sumDivergence(deviceVariance: Long, devices: Int): Double =
        10 * (1 until devices).sumOf { k -> exp(-2 * PI * PI * deviceVariance * k / (k + 1.0)) }

    /**
     * min(((2 alpha - 1) D2^2 + 6 D1)/(4 mu^2), 3 D1/(2 mu)).
     *
     * Where 6 D1 < D2^2, a D2^2 in the first bound is rounded up to 6 D1, as zCDP accountants must.
     */
    private fun skellamCorrection(order: Double, square: Double, l1: Double, mu: Double): Double =
        minOf((2 * order * square + maxOf(0.0, 6 * l1 - square)) / (4 * mu * mu), 3 * l1 / (2 * mu))
}
