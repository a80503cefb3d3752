package edge

/**
 * What a device tells its app while it runs, in the order in which it happened.
 *
 * All have [population], the name that was joined, and [at], seconds since the epoch. Knows nothing of who sends them.
 */
public sealed interface DeviceEvent {
    public val population: String
    public val at: Double
}

/** A round's training is under way, and this many of its [steps] are done: about a hundred times in each at most. */
public data class Training(
    override val population: String,
    override val at: Double,
    val roundNumber: Long,
    val done: Int,
    val steps: Int,
) : DeviceEvent

/** A round's training ended well; nothing left the device yet. */
public data class Trained(
    override val population: String,
    override val at: Double,
    val roundNumber: Long,
    val examples: Int,
) : DeviceEvent

/** A masked update left the device; [epsilon] is what the task has cost so far, at [delta]. */
public data class Uploaded(
    override val population: String,
    override val at: Double,
    val roundNumber: Long,
    val sentBytes: Int,
    val epsilon: Double,
    val delta: Double,
) : DeviceEvent

/** Predictions come from this version of the global model from now on. */
public data class Installed(
    override val population: String,
    override val at: Double,
    val version: Long,
) : DeviceEvent

/**
 * The device declined a round, by its policy or because it could not go on; the coordinator is told the same.
 *
 * [reason] is one word of the protocol, such as "cohort_too_small"; [detail] a sentence, with the numbers.
 */
public data class Refused(
    override val population: String,
    override val at: Double,
    val roundNumber: Long,
    val reason: String,
    val detail: String,
) : DeviceEvent

/** The device would take part, but not now; [reason] says why, such as "not charging" or "no consent". */
public data class Deferred(
    override val population: String,
    override val at: Double,
    val reason: String,
) : DeviceEvent

/**
 * An attempt to reach the broker failed; the device keeps trying.
 *
 * [reason] is "network", or what the broker says of this device's certificate: [CERTIFICATE_REVOKED], after which only another
 * identity helps, or [CERTIFICATE_EXPIRED], which a wrong clock looks like too; [detail] a sentence.
 */
public data class Unreachable(
    override val population: String,
    override val at: Double,
    val reason: String,
    val detail: String,
) : DeviceEvent {
    public companion object {
        public const val NETWORK: String = "network"
        public const val CERTIFICATE_REVOKED: String = "certificate_revoked"
        public const val CERTIFICATE_EXPIRED: String = "certificate_expired"
    }
}

/** The broker answers, at first or again. */
public data class Connected(
    override val population: String,
    override val at: Double,
) : DeviceEvent
