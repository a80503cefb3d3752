package edge.protocol

import edge.Bytes
import edge.Coded
import edge.privacy.Mechanism

/**
 * What the two ends say to each other, as values.
 *
 * The normative text is PROTOCOL.md; the byte layout is messages.fbs, and [Codec] turns one into the other. Nothing here
 * knows of frames, signatures, topics or time. Sizes are bytes, durations seconds, indices count the devices of a roster
 * from 0. A u32 is a Long from 0; a u64 is a Long whose upper half shows as negative.
 */
public sealed interface Message

/** What a coordinator says. */
public sealed interface ToDevice : Message

/** What a device says. */
public sealed interface ToCoordinator : Message

/** What a coordinator says of the open round: it carries the round's id. */
public sealed interface RoundMessage : ToDevice {
    public val rid: Bytes
}

/** Stands where a round id would, and no round is open. */
public val NO_ROUND: Bytes = Bytes(ByteArray(16))

/** Whether a task takes check-ins. */
public enum class TaskState(override val code: Int) : Coded { OPEN(1), PAUSED(2), COMPLETE(3) }

/** Why a check-in was not taken; the device may come again after the retry window. */
public enum class RejectionReason(override val code: Int) : Coded {
    ROUND_FULL(1),
    TASK_CLOSED(2),
    UNKNOWN_TASK(3),
    STALE_ANNOUNCEMENT(4),
    ROUND_IN_PROGRESS(5),
    SITTING_OUT(6),
}

/** Why a device will not take part in a planned round. */
public enum class DeclineReason(override val code: Int) : Coded {
    SUITE_UNSUPPORTED(1),
    TASK_NOT_ALLOWED(2),
    COHORT_TOO_SMALL(3),
    NOISE_TOO_SMALL(4),
    EPSILON_TOO_LARGE(5),
    PARTICIPATION_CAP(6),
    PLAN_MALFORMED(7),
    BUNDLE_INVALID(8),
    NOT_ENOUGH_EXAMPLES(9),
    TRAINING_FAILED(10),
    ROSTER_UNSOUND(11),
    SURVIVORS_UNSOUND(12),
    ROUND_ALREADY_JOINED(13),
    OVER_TIME_BUDGET(14),
    OVER_TRAFFIC_BUDGET(15),
    OVER_MEMORY_BUDGET(16),
}

/** Why a round ended without a release. */
public enum class AbandonReason(override val code: Int) : Coded {
    NONE(0),
    TOO_FEW_CHECK_INS(1),
    TOO_FEW_KEYS(2),
    TOO_FEW_SHARES(3),
    TOO_FEW_REPORTS(4),
    TOO_FEW_ANSWERS(5),
    BAD_SHARES(6),
    CANCELLED(7),
    BUDGET_EXHAUSTED(8),
    RESTARTED_DIFFERENTLY(9),
    AGGREGATE_UNUSABLE(10),
    COORDINATOR_FAILED(11),
    NO_QUORUM(12),
}

/** What became of a masked input. */
public enum class ReceiptStatus(override val code: Int) : Coded { ACCEPTED(1), DUPLICATE(2), LATE(3), BAD_DIGEST(4) }

/** What keeps a coordinator from unmasking with two sets of survivors. */
public enum class Consistency(override val code: Int) : Coded { THRESHOLD(1), QUORUM(2) }

/** A named byte string: its SHA-256 and its size. */
public data class BlobRef(val sha256: Bytes, val sizeBytes: Long)

/**
 * Retained, to every device of a population: a task, its newest model, and its open round.
 *
 * [rid] is [NO_ROUND] and [roundNumber] 0 where no round is open.
 */
public data class Announcement(
    val sequence: Long,
    val population: String,
    val task: String,
    val state: TaskState,
    val rid: Bytes,
    val roundNumber: Long,
    val rounds: Long,
    val selectionWindowS: Double,
    val modelVersion: Long,
    val bundle: BlobRef,
    val checkpoint: BlobRef,
) : ToDevice

/** To one device: not this time; come again within [retryAfterS, retryAfterS + retrySpreadS). */
public data class Rejection(
    val task: String,
    val reason: RejectionReason,
    val retryAfterS: Double,
    val retrySpreadS: Double,
) : ToDevice

/** Stage 0, byte for byte the same to every device of a cohort: what the round computes and promises. */
public data class Plan(
    val rid: Bytes,
    val suite: Int,
    val task: String,
    val roundNumber: Long,
    val modelVersion: Long,
    val bundle: BlobRef,
    val checkpoint: BlobRef,
    val goalCount: Long,
    val minReports: Long,
    val corruptShare: Double,
    val dropoutShare: Double,
    val consistency: Consistency,
    val dimension: Long,
    val bits: Int,
    val mechanism: Mechanism,
    val localNoise: Boolean,
    val clipNorm: Double,
    val clipBit: Double,
    val scale: Double,
    val normBound: Double,
    val deviceVariance: Long,
    val noiseMultiplier: Double,
    val epsilon: Double,
    val delta: Double,
    val participationCap: Long,
    val epochs: Long,
    val batchSize: Long,
    val maxSteps: Long,
    val learningRate: Double,
    val expiresAfterS: Double,
    val proximal: Double,
) : ToDevice

/** Another device of the roster, neighbour or member of the committee, with what proves that it stands there. */
public data class Neighbour(
    val index: Long,
    val certificate: Bytes,
    val channelPublic: Bytes,
    val maskPublic: Bytes,
    val signature: Bytes,
    val proof: Bytes,
)

/**
 * Stage 2: the Merkle root over all who advertised, this device's own proof in it, and its neighbours.
 *
 * [committee] and [quorum] are 0 where the threshold alone keeps the survivors one set.
 */
public data class Roster(
    override val rid: Bytes,
    val root: Bytes,
    val size: Long,
    val index: Long,
    val degree: Long,
    val threshold: Long,
    val proof: Bytes,
    val neighbours: List<Neighbour>,
    val committee: Long,
    val quorum: Long,
) : RoundMessage

/** Stage 4, down: who shared (U2) and the boxes addressed to this device, 80 bytes for each index. */
public data class ShareDelivery(
    override val rid: Bytes,
    val sharers: Bytes,
    val indices: List<Long>,
    val boxes: Bytes,
) : RoundMessage

/** Stage 5: who shared (U2) and whose masked input is in the sum (U3). */
public data class Survivors(
    override val rid: Bytes,
    val root: Bytes,
    val sharers: Bytes,
    val survivors: Bytes,
) : RoundMessage

/**
 * Stage 5b: the survivors, as a quorum of the committee endorsed them, and for what U2 the neighbours masked.
 *
 * [endorsements] are 64 bytes for each member, [statements] 64 for each index: the neighbours in U3.
 */
public data class Quorum(
    override val rid: Bytes,
    val root: Bytes,
    val sharers: Bytes,
    val survivors: Bytes,
    val members: List<Neighbour>,
    val endorsements: Bytes,
    val indices: List<Long>,
    val statements: Bytes,
) : RoundMessage

/** What became of the masked input with this digest. Only this, never a broker's word, means delivered. */
public data class Receipt(override val rid: Bytes, val sha256: Bytes, val status: ReceiptStatus) : RoundMessage

/** The end of a round. */
public data class Outcome(
    override val rid: Bytes,
    val committed: Boolean,
    val reason: AbandonReason,
    val reports: Long,
) : RoundMessage

/** Stands for a signed frame too large for one message: pull it, then read it as if it had come. */
public data class Large(val frame: BlobRef) : ToDevice

/** A device offers itself for the round that an announcement opened. */
public data class CheckIn(
    val task: String,
    val rid: Bytes,
    val sdkVersion: String,
    val runtimeVersion: String,
) : ToCoordinator

/** Stage 1: the round's public keys, signed over the context so that neighbours can check them. */
public data class AdvertiseKeys(
    val rid: Bytes,
    val channelPublic: Bytes,
    val maskPublic: Bytes,
    val signature: Bytes,
) : ToCoordinator

/** Stage 3: the commitment to the self seed and one 80-byte box for each neighbour index. */
public data class ShareKeys(
    val rid: Bytes,
    val commitment: Bytes,
    val indices: List<Long>,
    val boxes: Bytes,
) : ToCoordinator

/**
 * Stage 4, up: the masked vector, inline where it is small, else to be pulled by its digest.
 *
 * [statement] is the device's signature over the U2 that it masked for, where a quorum needs it; else empty.
 */
public data class MaskedInput(
    val rid: Bytes,
    val vector: BlobRef,
    val inline: Bytes,
    val statement: Bytes,
) : ToCoordinator

/** Stage 5a, up: a member of the committee signs the survivors that it was shown, and never others. */
public data class Endorsement(val rid: Bytes, val survivorsDigest: Bytes, val signature: Bytes) : ToCoordinator

/** Stage 6: for each neighbour in U2 its share, 32 bytes: of the self seed if it survived, else of the mask key. */
public data class UnmaskingShares(
    val rid: Bytes,
    val survivorsDigest: Bytes,
    val indices: List<Long>,
    val shares: Bytes,
) : ToCoordinator

/** A device refuses a plan or cannot go on with it. */
public data class Decline(val rid: Bytes, val reason: DeclineReason, val detail: String) : ToCoordinator

/** The receiver of a blob asks for chunks firsts[i] .. firsts[i] + counts[i] - 1, for every i. */
public data class Pull(
    val sha256: Bytes,
    val chunkBytes: Long,
    val firsts: List<Long>,
    val counts: List<Long>,
) : ToDevice, ToCoordinator

/** One bit an index: the indices set in a bitmap over [size] devices, or null where its length or unused bits are wrong. */
internal fun members(bits: Bytes, size: Int): Set<Int>? {
    if (bits.size != (size + 7) / 8) return null
    val found = (0 until 8 * bits.size).filterTo(LinkedHashSet()) { bits.array[it shr 3].toInt() shr (it and 7) and 1 == 1 }
    return if (found.isEmpty() || found.last() < size) found else null
}
