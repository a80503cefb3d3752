package edge.runtime

import edge.Bytes
import edge.privacy.Accounting
import edge.privacy.Subsampled
import edge.protocol.DevicePolicy

/**
 * One masked update that left the device.
 *
 * [at] is when, in seconds since the epoch, for which round of which [task]; [sentBytes] and [sentSha256] are of the masked
 * vector, which by itself says nothing of the update; [purpose] is what the owner had agreed to, empty where nobody was
 * asked; [cost] by how much epsilon of the task grew, infinity for a round without noise; [epsilon] at [delta] is spent on
 * the task up to and with this round; [outcome] tells how the round ended for this device, such as "committed", and is
 * empty while it is open.
 */
public data class Receipt(
    val at: Double,
    val task: String,
    val roundNumber: Long,
    val sentBytes: Int,
    val sentSha256: Bytes,
    val purpose: String,
    val cost: Double,
    val epsilon: Double,
    val delta: Double,
    val outcome: String,
)

/** What one task has cost: device-level [epsilon] at [delta], and how often the device took part. */
public data class TaskSpending(val epsilon: Double, val delta: Double, val participations: Int)

/**
 * What the device has given away, and what it gives at most.
 *
 * [epsilon] is device-level, of all that ever left it, whatever the task, at the policy's [delta]; a plan that could exceed
 * [epsilonAtMost] is declined. [exampleEpsilon] is of each single example, by this device's own noise in bundles that are
 * private for each, null where there was no such bundle; [tasks] are by name.
 */
public data class Spent(
    val epsilon: Double,
    val delta: Double,
    val epsilonAtMost: Double,
    val exampleEpsilon: Double?,
    val participations: Long,
    val participationsAtMost: Int,
    val tasks: Map<String, TaskSpending>,
)

/**
 * What the device gave away so far, for the app to show: computed from its own ledger, never from what a coordinator claims.
 */
public class PrivacyAccount internal constructor(private val store: DeviceStore, private val policy: DevicePolicy) {
    /** All that left the device, oldest first; since the owner withdrew, if that was ever done. */
    public fun receipts(): List<Receipt> {
        val outcomes = store.outcomes()
        val before = HashMap<String, Double>()
        return store.participations().mapNotNull { one ->
            // Infinity less infinity is no number.
            val cost = if (one.epsilon.isInfinite()) one.epsilon else one.epsilon - (before[one.task] ?: 0.0)
            before[one.task] = one.epsilon
            if (one.at == 0.0) return@mapNotNull null // before a withdrawal, of which only the cost is kept
            Receipt(
                one.at, one.task, one.roundNumber, one.sentBytes, one.sentSha256, one.purpose, cost, one.epsilon, one.delta,
                outcomes[one.rid].orEmpty(),
            )
        }
    }

    /** What the tasks have cost, each and all together. */
    public fun spent(): Spent {
        val spending = store.spending("")
        val samplings = store.samplings()
        return Spent(
            epsilon = Accounting.composedEpsilon(
                spending.releases.map { (one, count) -> policy.counted(one) to count },
                policy.deltaAtMost,
            ),
            delta = policy.deltaAtMost,
            epsilonAtMost = policy.epsilonAtMost,
            exampleEpsilon = if (samplings.isEmpty()) null else Subsampled.sampledEpsilon(samplings, policy.deltaAtMost),
            participations = spending.allParticipations,
            participationsAtMost = policy.allParticipationsAtMost,
            tasks = store.participations().groupBy { it.task }
                .mapValues { (_, all) -> TaskSpending(all.last().epsilon, all.last().delta, all.size) },
        )
    }
}
