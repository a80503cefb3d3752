package edge.runtime

import edge.Bytes
import edge.Deferred
import edge.DeviceEvent
import edge.Installed
import edge.RemoteProtocolError
import edge.fromHex
import edge.protocol.Announcement
import edge.protocol.BlobRef
import edge.protocol.NO_ROUND
import edge.protocol.Plan
import edge.protocol.TaskState
import edge.protocol.Topics

/**
 * A device's part in one population: what it last heard, whether it may take part now, and which model it serves.
 *
 * Holds no session: a device follows several populations and is in one round at a time. [store] keeps what must outlive the
 * process; [onEvent] is told when a model is installed, or why the device does not take part now.
 */
internal class Membership(
    val population: String,
    val learner: Learner,
    private val store: DeviceStore,
    private val onEvent: (DeviceEvent) -> Unit,
) {
    /** The newest heard in this process, or null. */
    var announcement: Announcement? = null
        private set

    /** The certificate that announces to it, or null. */
    var coordinator: Bytes? = store.get("coordinator/$population")?.fromHex()?.let(::Bytes)
        private set

    /** The newest task announced, also before this process; empty where none ever was. */
    var task: String = store.get("task/$population").orEmpty()
        private set

    /** Of the model that serves; 0 where there is none. */
    var installedVersion: Long = store.number("installed_version/$population")
        private set

    /** What this population's newest model is made of. */
    var blobs: Set<Bytes> = store.get("blobs/$population").orEmpty().split(' ').filter { it.isNotEmpty() }
        .mapNotNullTo(HashSet()) { it.fromHex()?.let(::Bytes) }
        private set

    /** What is against training for it now, in words; read from the training thread too. */
    @Volatile var objections: List<String> = emptyList()

    /** When the device may offer itself, seconds since the epoch. */
    var notBefore: Double = 0.0

    /** Whether it offered itself to the announced round, and has no answer; and when it last did. */
    var checkedIn: Boolean = false
    var offeredAt: Double = 0.0

    /** Whether the announced round is over for the device, by declining or otherwise. */
    var left: Boolean = false
        private set

    /** Whether the announced task is complete, and its model is not installed here. */
    var wantsModel: Boolean = false

    /** A bundle, and the memory that its training takes in bytes; null where it is not known. */
    var needs: Pair<Bytes, Long>? = null
    private var deferred = ""

    /**
     * Takes in an authenticated announcement; false where it is the one that was heard last.
     *
     * Raises RemoteProtocolError: its task cannot be named, or it is older than one already heard.
     */
    fun hear(message: Announcement, certificate: Bytes, now: Double): Boolean {
        if (!Topics.isId(message.task)) throw RemoteProtocolError("an announcement of a task that cannot be named")
        val heard = "sequence/${message.task}"
        if (java.lang.Long.compareUnsigned(message.sequence, store.number(heard)) < 0) {
            throw RemoteProtocolError("an announcement older than one already heard")
        }
        if (coordinator != certificate) {
            coordinator = certificate
            store.put("coordinator/$population", certificate.hex())
        }
        val known = announcement
        if (known != null && known.task == message.task && known.sequence == message.sequence) return false
        store.put(heard, java.lang.Long.toUnsignedString(message.sequence))
        task = message.task
        store.put("task/$population", task)
        announcement = message
        checkedIn = false
        left = store.hasEnded(message.rid)
        notBefore = now
        wantsModel = message.state == TaskState.COMPLETE && message.modelVersion > installedVersion
        return true
    }

    /** Whether this round is the announced one. */
    fun announces(plan: Plan): Boolean = announcement?.let { it.rid == plan.rid && it.task == plan.task } ?: false

    /** Whether there is a round to offer itself to, and nothing about the moment is against it. */
    val isAsked: Boolean
        get() = announcement?.let { it.state == TaskState.OPEN && it.rid != NO_ROUND } == true &&
            !checkedIn && !left && objections.isEmpty()

    /** Whether the announced task is over, and its last model serves. */
    val isComplete: Boolean
        get() = announcement?.let { it.state == TaskState.COMPLETE && installedVersion >= it.modelVersion } ?: false

    /** Until when an offer that brings no answer keeps the device from others: the round's selection is over. */
    val offerExpiresAt: Double
        get() = offeredAt + (announcement?.selectionWindowS ?: 0.0).coerceIn(OFFER_MIN_S, OFFER_MAX_S)

    /** A round is over for the device. */
    fun leave(plan: Plan) {
        left = left || announcement?.rid == plan.rid
    }

    /** Says why the device does not take part now, once for each reason in a row. */
    fun defer(reason: String, now: Double) {
        if (reason.isNotEmpty() && reason != deferred) onEvent(Deferred(population, now, reason))
        deferred = reason
    }

    /** Remembers which blobs this population's newest model is made of. */
    fun keep(digests: Set<Bytes>) {
        if (digests == blobs) return
        blobs = digests
        store.put("blobs/$population", digests.map { it.hex() }.sorted().joinToString(" "))
    }

    /** Serves a model that is here and checked, unless it serves already or is older; raises as [Learner.install]. */
    fun install(version: Long, bundle: Bundle, checkpoint: BlobRef, content: ByteArray, now: Double) {
        val key = "installed_sha256/$population"
        if (version <= installedVersion && store.get(key) == checkpoint.sha256.hex()) return
        learner.install(version, bundle, content)
        installedVersion = version
        store.put("installed_version/$population", version.toString())
        store.put(key, checkpoint.sha256.hex())
        onEvent(Installed(population, now, version))
    }

    private companion object {
        const val OFFER_MIN_S = 10.0
        const val OFFER_MAX_S = 600.0
    }
}
