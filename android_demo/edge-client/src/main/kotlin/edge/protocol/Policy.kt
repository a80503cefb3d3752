package edge.protocol

import edge.ConfigError
import edge.PrivacyError
import edge.privacy.Accounting
import edge.privacy.EncodingParameters
import edge.privacy.Release
import edge.privacy.Sampling
import edge.privacy.Subsampled
import edge.secagg.Suite
import java.util.Locale

/**
 * The device's own floors; a weaker plan is declined with its reason.
 *
 * [tasks] it takes part in, empty for any; [minReports], the fewest devices in a sum that may hold this device's update;
 * [epsilonAtMost], the largest device-level epsilon over all that ever left this device, whatever the task (infinity
 * allows noise off), at [deltaAtMost]; [participationsAtMost] in one task, whatever the plan allows, and [allParticipationsAtMost] in all tasks together;
 * [exampleEpsilonAtMost], the largest example-level epsilon that this device's own noise leaves to any of its examples, over
 * all it ever trained (infinity takes bundles that do not protect each example);
 * [corruptShareAtLeast], the share of colluding devices that a plan must assume; [localNoise], to count on this device's
 * own noise only, as if all others worked with the coordinator; [minExamples] worth training on.
 *
 * Raises ConfigError where a floor is out of range.
 */
public data class DevicePolicy(
    val tasks: Set<String> = emptySet(),
    val minReports: Int = 20,
    val epsilonAtMost: Double = 10.0,
    val deltaAtMost: Double = 1e-5,
    val participationsAtMost: Int = 1_000,
    val allParticipationsAtMost: Int = 10_000,
    val corruptShareAtLeast: Double = 0.05,
    val exampleEpsilonAtMost: Double = Double.POSITIVE_INFINITY,
    val localNoise: Boolean = false,
    val minExamples: Int = 1,
) {
    init {
        // Comparisons with NaN are false, so that it would let every plan pass.
        if (!(epsilonAtMost > 0) || !(deltaAtMost > 0 && deltaAtMost < 1)) {
            throw ConfigError(
                "a policy of epsilon $epsilonAtMost at delta $deltaAtMost protects nothing",
                "choose a positive epsilon (infinity allows noise off) and 0 < delta < 1",
            )
        }
        if (!(exampleEpsilonAtMost > 0)) {
            throw ConfigError(
                "an example-level epsilon of $exampleEpsilonAtMost allows no training",
                "choose a positive one (infinity takes bundles without example-level noise)",
            )
        }
        if (!(corruptShareAtLeast >= 0 && corruptShareAtLeast < 0.5)) {
            throw ConfigError(
                "a policy cannot ask for $corruptShareAtLeast colluding devices",
                "choose a share from 0 to below 0.5",
            )
        }
        val counts = mapOf(
            "minReports" to minReports,
            "participationsAtMost" to participationsAtMost,
            "allParticipationsAtMost" to allParticipationsAtMost,
            "minExamples" to minExamples,
        )
        for ((name, count) in counts) {
            if (count < 1) throw ConfigError("a policy's $name is $count", "choose 1 or more")
        }
    }

    /** A release with the noise that this device counts on. */
    internal fun counted(release: Release): Release = if (localNoise) release.copy(honest = 1) else release
}

/**
 * What left this device before, by its own ledger: how often it took part in the plan's task, and into which sums its
 * updates went, of all tasks, each with how often.
 */
public data class Spending(val participations: Int = 0, val releases: List<Pair<Release, Long>> = emptyList()) {
    /** How often it took part in any task. */
    val allParticipations: Long get() = releases.sumOf { it.second }
}

/** Why a plan is declined. */
public data class Objection(val reason: DeclineReason, val detail: String)

/**
 * What a device insists on, whatever a coordinator plans: the check of a plan against its floors (PROTOCOL.md 9.2).
 *
 * The device computes epsilon from the plan's own noise parameters; the plan's claim is not looked at.
 */
public object Policy {
    /** The encoding that a plan prescribes; raises PrivacyError where its numbers are out of range. */
    public fun encodingOf(plan: Plan): EncodingParameters = EncodingParameters(
        dimension = if (plan.dimension <= Limits.DIMENSION_MAX) plan.dimension.toInt() else 0,
        bits = plan.bits,
        clipNorm = plan.clipNorm,
        clipBit = plan.clipBit,
        scale = plan.scale,
        normBound = plan.normBound,
        mechanism = plan.mechanism,
        deviceVariance = plan.deviceVariance,
    )

    /** The release that a participation in this round counts as; variance 0 where the plan adds no noise. */
    public fun releaseOf(plan: Plan): Release = Release(
        mechanism = plan.mechanism,
        normBound = plan.normBound,
        length = encodingOf(plan).length,
        deviceVariance = plan.deviceVariance,
        honest = honestSurvivors(plan),
    )

    /** The devices whose noise is counted on: those of the smallest sum, less all colluders of the largest roster. */
    private fun honestSurvivors(plan: Plan): Int =
        if (plan.localNoise) 1 else Accounting.honestReports(plan.minReports.toInt(), plan.goalCount.toInt(), plan.corruptShare)

    /**
     * Why this device will not follow the plan, or null.
     *
     * The epsilon compared with the policy's is that of all the device released before and of all it may yet release
     * under this plan, so that no sequence of plans, each within bounds, adds up to more.
     */
    public fun objection(plan: Plan, policy: DevicePolicy, spending: Spending): Objection? {
        malformed(plan)?.let { return Objection(DeclineReason.PLAN_MALFORMED, it) }
        if (plan.suite != Suite.SUITE) {
            return Objection(DeclineReason.SUITE_UNSUPPORTED, "suite ${plan.suite}; this device has ${Suite.SUITE}")
        }
        if (policy.tasks.isNotEmpty() && plan.task !in policy.tasks) {
            return Objection(DeclineReason.TASK_NOT_ALLOWED, "task '${plan.task}' is not among those allowed")
        }
        if (plan.minReports < policy.minReports) {
            return Objection(
                DeclineReason.COHORT_TOO_SMALL,
                "the plan releases sums of ${plan.minReports} devices; this device asks for ${policy.minReports}",
            )
        }
        if (plan.corruptShare < policy.corruptShareAtLeast) {
            return Objection(
                DeclineReason.COHORT_TOO_SMALL,
                String.format(
                    Locale.ROOT,
                    "the plan assumes %.0f%% colluding devices; this device asks for %.0f%%",
                    100 * plan.corruptShare,
                    100 * policy.corruptShareAtLeast,
                ),
            )
        }
        val cap = minOf(plan.participationCap, policy.participationsAtMost.toLong())
        if (spending.participations >= cap) {
            return Objection(
                DeclineReason.PARTICIPATION_CAP,
                "took part ${spending.participations} times of at most $cap",
            )
        }
        val left = policy.allParticipationsAtMost - spending.allParticipations
        if (left < 1) {
            return Objection(
                DeclineReason.PARTICIPATION_CAP,
                "took part ${spending.allParticipations} times in all tasks of at most ${policy.allParticipationsAtMost}",
            )
        }
        if (policy.epsilonAtMost.isInfinite()) return null
        val release = releaseOf(plan)
        if (release.variance == 0L) {
            return Objection(DeclineReason.NOISE_TOO_SMALL, "the plan adds no noise; this device asks for some")
        }
        return costObjection(release, minOf(cap - spending.participations, left), policy, spending)
    }

    private fun costObjection(release: Release, more: Long, policy: DevicePolicy, spending: Spending): Objection? {
        val counted = (spending.releases + Pair(release, more)).map { (one, count) -> policy.counted(one) to count }
        val epsilon = Accounting.composedEpsilon(counted, policy.deltaAtMost)
        if (epsilon <= policy.epsilonAtMost) return null
        val cost = String.format(Locale.ROOT, "%.2f", epsilon)
        val alone = if (policy.localNoise) " by its own noise alone" else ""
        return Objection(
            DeclineReason.EPSILON_TOO_LARGE,
            "with this plan all releases would cost epsilon $cost at delta ${policy.deltaAtMost}; " +
                "this device allows ${policy.epsilonAtMost}$alone",
        )
    }

    /**
     * Why this device will not train on its examples so, or null.
     *
     * [sampling] is what the training would release of each example, null where nothing protects each; [spent] what was
     * released of its examples before, whatever the task.
     */
    public fun exampleObjection(sampling: Sampling?, policy: DevicePolicy, spent: List<Sampling>): Objection? {
        if (policy.exampleEpsilonAtMost.isInfinite()) return null
        if (sampling == null) {
            return Objection(
                DeclineReason.NOISE_TOO_SMALL,
                "the bundle adds no noise for each example; this device asks for some",
            )
        }
        val epsilon = Subsampled.sampledEpsilon(spent + sampling, policy.deltaAtMost)
        if (epsilon <= policy.exampleEpsilonAtMost) return null
        val cost = String.format(Locale.ROOT, "%.2f", epsilon)
        return Objection(
            DeclineReason.EPSILON_TOO_LARGE,
            "with this training each example would have cost epsilon $cost at delta ${policy.deltaAtMost}; " +
                "this device allows ${policy.exampleEpsilonAtMost}",
        )
    }

    private fun malformed(plan: Plan): String? {
        for ((name, value) in listOf("learning_rate" to plan.learningRate, "expires_after_s" to plan.expiresAfterS)) {
            if (!(value > 0 && value < Double.POSITIVE_INFINITY)) return "$name is $value"
        }
        if (!(plan.proximal >= 0 && plan.proximal < Double.POSITIVE_INFINITY)) return "proximal is ${plan.proximal}"
        val counts = listOf(
            "goal_count" to plan.goalCount,
            "min_reports" to plan.minReports,
            "epochs" to plan.epochs,
            "batch_size" to plan.batchSize,
            "max_steps" to plan.maxSteps,
            "participation_cap" to plan.participationCap,
        )
        for ((name, count) in counts) if (count < 1) return "$name is $count"
        if (!(plan.minReports <= plan.goalCount && plan.goalCount <= Limits.COHORT_MAX)) {
            return "min_reports is ${plan.minReports}, goal_count ${plan.goalCount}"
        }
        if (!(plan.delta > 0 && plan.delta < 1)) return "delta is ${plan.delta}"
        if (plan.dimension > Limits.DIMENSION_MAX) return "dimension is ${plan.dimension}"
        if (!(isShare(plan.corruptShare) && isShare(plan.dropoutShare))) {
            return "corrupt_share is ${plan.corruptShare}, dropout_share ${plan.dropoutShare}"
        }
        return try {
            encodingOf(plan)
            null
        } catch (error: PrivacyError) {
            error.message
        }
    }

    private fun isShare(value: Double): Boolean = value >= 0 && value < 0.5
}
