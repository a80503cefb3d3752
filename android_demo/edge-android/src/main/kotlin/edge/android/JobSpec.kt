package edge.android

/** Which network a job waits for. */
public enum class Network { ANY, UNMETERED }

/**
 * What is asked of the system's job scheduler, as plain values: [JobPlans] decides, [JobScheduling] passes it on.
 *
 * @property id of the job within the app.
 * @property periodMs how often it runs; null for once.
 * @property persisted whether it survives a reboot.
 * @property backoffMs the first wait after a run that asked for another; null leaves it to the system.
 */
public data class JobSpec(
    val id: Int,
    val charging: Boolean,
    val idle: Boolean,
    val network: Network,
    val batteryNotLow: Boolean,
    val storageNotLow: Boolean,
    val periodMs: Long?,
    val persisted: Boolean,
    val backoffMs: Long?,
) {
    init {
        // JobInfo.Builder.build() throws for each of these, on the phone, when it is too late.
        require(periodMs == null || periodMs >= SHORTEST_PERIOD_MS) { "a period of $periodMs ms is shorter than 15 minutes" }
        require(!(idle && backoffMs != null)) { "a job that waits for an idle phone cannot have a back-off of its own" }
    }

    public companion object {
        /** The shortest period that Android takes. */
        public const val SHORTEST_PERIOD_MS: Long = 15L * 60 * 1000
    }
}

/** The two jobs of an app that trains. */
public object JobPlans {
    /** The id of [periodic]. */
    public const val PERIODIC_ID: Int = 0x0ED6E1

    /** The id of [once]. */
    public const val ONCE_ID: Int = 0x0ED6E2

    private const val HOUR_MS = 3_600_000L
    private const val BACKOFF_MS = 30_000L

    /** Now and then, as long as the person takes part; it survives reboots. */
    public fun periodic(eligibility: Eligibility): JobSpec = JobSpec(
        id = PERIODIC_ID,
        charging = eligibility.charging,
        idle = eligibility.idle,
        network = network(eligibility),
        batteryNotLow = true,
        storageNotLow = true,
        periodMs = eligibility.everyHours * HOUR_MS,
        persisted = true,
        backoffMs = if (eligibility.idle) null else BACKOFF_MS,
    )

    /** Once, soon, because the person asked: the phone is in their hand, so it cannot be idle. */
    public fun once(eligibility: Eligibility): JobSpec = JobSpec(
        id = ONCE_ID,
        charging = eligibility.charging,
        idle = false,
        network = network(eligibility),
        batteryNotLow = false,
        storageNotLow = true,
        periodMs = null,
        persisted = false,
        backoffMs = BACKOFF_MS,
    )

    private fun network(eligibility: Eligibility) = if (eligibility.unmetered) Network.UNMETERED else Network.ANY
}
