package edge.runtime

import edge.BudgetExceeded
import edge.ConfigError
import edge.protocol.DeclineReason
import edge.protocol.Objection
import java.util.Locale
import kotlin.math.floor

/**
 * What the app lets training take from its machine. Infinity, the default, is no bound.
 *
 * [cpuShare] is the share of the time, in (0, 1], in which training computes; it pauses between steps for the rest. A step
 * computes on so many [threads]. [wallS] are the seconds that a round's training may last, pauses included; the round is
 * declined then. [bytesPerDay] are sent and received, from midnight to midnight UTC: what would take more is declined before
 * it is fetched; a round that has begun is finished, since others would be kept waiting. [memoryMb] is what a bundle's
 * training may take, in 10^6 bytes, as the bundle itself predicts.
 *
 * Raises ConfigError where one is out of range.
 */
public data class Budget(
    val cpuShare: Double = 1.0,
    val threads: Int = 1,
    val wallS: Double = Double.POSITIVE_INFINITY,
    val bytesPerDay: Double = Double.POSITIVE_INFINITY,
    val memoryMb: Double = Double.POSITIVE_INFINITY,
) {
    init {
        // Comparisons with NaN are false.
        if (!(cpuShare > 0 && cpuShare <= 1 && threads >= 1)) {
            throw ConfigError(
                "a budget of cpuShare=$cpuShare on threads=$threads cannot be held to",
                "give a share above 0 and up to 1, and one thread or more",
            )
        }
        for ((name, value) in listOf("wallS" to wallS, "bytesPerDay" to bytesPerDay, "memoryMb" to memoryMb)) {
            if (!(value > 0)) {
                throw ConfigError(
                    "a budget of $name=$value allows no training",
                    "give a positive number, or leave it out for no bound",
                )
            }
        }
    }

    /** Why training that takes about so much memory is refused, or null; [freeBytes] is null where it cannot be told. */
    internal fun memoryObjection(neededBytes: Long, freeBytes: Long?): Objection? {
        val allowed = when {
            neededBytes > memoryMb * MB -> "this device allows ${whole(memoryMb * MB)}"
            freeBytes != null && neededBytes > freeBytes -> "${whole(freeBytes.toDouble())} are free on this device"
            else -> return null
        }
        val detail = "training takes about ${whole(neededBytes.toDouble())} MB of memory; $allowed"
        return Objection(DeclineReason.OVER_MEMORY_BUDGET, detail)
    }

    private fun whole(bytes: Double): String = String.format(Locale.ROOT, "%.0f", bytes / MB)

    internal companion object {
        const val MB: Double = 1e6
        private const val DAY_S = 86_400.0

        /** The day of UTC that a time falls into, counted from the epoch. */
        fun dayOf(now: Double): Long = floor(now / DAY_S).toLong()

        /** When the next day of UTC begins, in seconds since the epoch. */
        fun nextDay(now: Double): Double = (dayOf(now) + 1) * DAY_S
    }
}

/**
 * Asked before every step of one training: pauses for the rest of the time, and ends what takes too long.
 *
 * [shouldStop] is asked too, also during pauses; [monotonic] (seconds) and [sleep] are the system's, or a test's.
 */
internal class Pacer(
    private val budget: Budget,
    private val shouldStop: () -> Boolean,
    private val monotonic: () -> Double = { System.nanoTime() / 1e9 },
    private val sleep: (Double) -> Unit = { Thread.sleep((it * 1e3).toLong()) },
) {
    private val began = monotonic()
    private var stepBegan = began
    private var owedS = 0.0

    /** Whether training should stop; raises BudgetExceeded: it lasted longer than the budget allows. */
    fun isOver(): Boolean {
        val ended = monotonic()
        owedS += (ended - stepBegan) * (1 / budget.cpuShare - 1)
        val readyAt = ended + owedS
        var stop = shouldStop()
        while (!stop && owedS >= PAUSE_S) {
            val now = monotonic()
            if (now >= readyAt || now - began >= budget.wallS) break
            sleep(minOf(NAP_S, readyAt - now))
            stop = shouldStop()
        }
        stepBegan = monotonic()
        owedS = maxOf(0.0, readyAt - stepBegan)
        if (!stop && stepBegan - began >= budget.wallS) {
            throw BudgetExceeded(
                "training was not done after the ${budget.wallS} s that this device allows a round",
                "raise wallS or cpuShare, or let the task take fewer steps",
            )
        }
        return stop
    }

    private companion object {
        /** A pause between steps looks this often whether training should stop. */
        const val NAP_S = 0.25

        /** Pauses of quick steps are put together: to fall asleep and wake up takes longer than some steps. */
        const val PAUSE_S = 0.05
    }
}

/** Counts what a device sends and receives, and tells what it has left today. Days are those of UTC. */
internal class Traffic(budget: Budget, private val store: DeviceStore) {
    private val allowed = budget.bytesPerDay
    private var day = 0L
    private var counted = 0L

    /** Counts the bytes of a message. */
    fun count(bytes: Int, now: Double) {
        val today = Budget.dayOf(now)
        if (today != day) keep()
        day = today
        counted += bytes
        if (counted >= KEEP_BYTES) keep()
    }

    /** Writes down what was counted. */
    fun keep() {
        if (counted > 0) store.countTraffic(day, counted)
        counted = 0
    }

    /** Bytes sent and received today. */
    fun used(now: Double): Long {
        val today = Budget.dayOf(now)
        return store.traffic(today) + if (today == day) counted else 0
    }

    /** Why so much more is not sent and received today, or null. */
    fun objection(moreBytes: Long, now: Double): Objection? {
        if (allowed.isInfinite()) return null
        val used = used(now)
        if (used + moreBytes <= allowed && used < allowed) return null
        val told = if (moreBytes > 0) "${megabytes(moreBytes.toDouble())} MB more" else "More"
        val end = if (moreBytes <= allowed) "" else ", which is less than that on any day"
        val again = ((Budget.nextDay(now) - now) / 3600).toInt() + 1
        return Objection(
            DeclineReason.OVER_TRAFFIC_BUDGET,
            "$told cannot go now: ${megabytes(used.toDouble())} of the ${megabytes(allowed)} MB that this device allows a " +
                "day are used$end; the next day begins at midnight UTC, within $again h",
        )
    }

    private fun megabytes(bytes: Double): String = String.format(Locale.ROOT, "%.1f", bytes / Budget.MB)

    private companion object {
        /** Traffic is written down once it comes to this much: a process that is killed forgets less. */
        const val KEEP_BYTES = 1L shl 16
    }
}
