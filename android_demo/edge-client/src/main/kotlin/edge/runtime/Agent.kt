package edge.runtime

import edge.ArtifactError
import edge.Bytes
import edge.Connected
import edge.Deferred
import edge.DeviceEvent
import edge.EdgeError
import edge.Identity
import edge.IdentityError
import edge.Installed
import edge.LocalProtocolError
import edge.ProtocolError
import edge.Refused
import edge.RemoteProtocolError
import edge.Role
import edge.Signing
import edge.StoreError
import edge.Trained
import edge.Training
import edge.TrainingError
import edge.Uploaded
import edge.fromHex
import edge.privacy.Accounting
import edge.privacy.Sampling
import edge.protocol.Announcement
import edge.protocol.Assembly
import edge.protocol.BlobRef
import edge.protocol.CheckIn
import edge.protocol.ChunkRange
import edge.protocol.Chunks
import edge.protocol.Codec
import edge.protocol.Decline
import edge.protocol.DeclineReason
import edge.protocol.DevicePolicy
import edge.protocol.Effect
import edge.protocol.Environment
import edge.protocol.Event
import edge.protocol.Incoming
import edge.protocol.Large
import edge.protocol.Limits
import edge.protocol.MemoryParts
import edge.protocol.NO_ROUND
import edge.protocol.PartStore
import edge.protocol.Plan
import edge.protocol.Policy
import edge.protocol.Pull
import edge.protocol.Rejection
import edge.protocol.RoundMessage
import edge.protocol.Session
import edge.protocol.State
import edge.protocol.TaskState
import edge.protocol.ToCoordinator
import edge.protocol.Topics
import edge.secagg.Suite
import java.util.Locale

/** One message for the broker. */
public class Outgoing internal constructor(
    public val topic: String,
    public val payload: ByteArray,
    public val expiryS: Int,
)

/**
 * A fetched bundle: its head, and how to read those of its parts that the learner asked for.
 *
 * [read] may be called from any thread; it raises StoreError for a part that is gone or was damaged.
 */
public class Bundle(public val head: ByteArray, public val read: (BlobRef) -> ByteArray)

/** Train by this plan from this checkpoint; the result goes to [DeviceAgent.trained] or [DeviceAgent.failed]. */
public class TrainingJob internal constructor(
    public val plan: Plan,
    public val bundle: Bundle,
    public val checkpoint: ByteArray,
    public val seed: Bytes,
)

/**
 * What training came to: float32 little-endian in layout order, and what it releases of each example, where the bundle adds
 * noise for each.
 */
public class Update(public val values: Bytes, public val sampling: Sampling? = null)

/** Training and serving on this device, as the agent needs them. */
public interface Learner {
    /** What runs the graphs, such as "onnxruntime 1.29.0". */
    public val runtimeVersion: String

    /** Examples that could be trained on now. */
    public val exampleCount: Int

    /**
     * Authenticates a bundle's head, and names the parts of the bundle that this device needs.
     *
     * Raises ArtifactError: not signed by the pinned signer, tampered with, or without something this device needs.
     */
    public fun parts(head: ByteArray): List<BlobRef>

    /** Authenticates the bundle, sees that this runtime computes it right; the layout's dimension. Raises as [parts]. */
    public fun check(bundle: Bundle, checkpoint: ByteArray): Long

    /**
     * What training by this plan would release of each example now; null where nothing protects each.
     *
     * Raises as [parts].
     */
    public fun sampling(bundle: Bundle, plan: Plan): Sampling? = null

    /**
     * The update; null where [shouldStop], asked before every step, said so. Raises TrainingError.
     *
     * [progress] is told before every step how many are done, and how many there will be.
     */
    public fun train(job: TrainingJob, progress: (done: Int, steps: Int) -> Unit, shouldStop: () -> Boolean): Update?

    /** Serves predictions from this model from now on; raises ArtifactError or StoreError, and the last one stays. */
    public fun install(version: Long, bundle: Bundle, checkpoint: ByteArray)
}

/**
 * A device without I/O loops: messages and time in, publications and training jobs out, everything durable in between.
 *
 * The agent carries out what the pure session decides: it authenticates, journals each accepted event before its effects,
 * fetches blobs, repeats what may be lost, installs models. It holds no socket, reads no clock, and never trains inside a
 * call: training is handed out as a job. Not for several threads.
 *
 * [randomBytes] is secret randomness from the operating system; a message that brought no answer is repeated after
 * [resendS] seconds, up to twice as long by jitter; [consented] is asked before a round is joined and while it lasts;
 * [onEvent] is told what happened once it is durable, from the training thread too, and [log] what a developer may want to know.
 */
public class DeviceAgent(
    private val identity: Identity,
    public val population: String,
    public val store: DeviceStore,
    private val blobs: BlobCache,
    private val learner: Learner,
    private val policy: DevicePolicy,
    private val randomBytes: (Int) -> ByteArray,
    private val resendS: Double = 10.0,
    private val consented: () -> Boolean = { true },
    private val onEvent: (DeviceEvent) -> Unit = {},
    private val log: (String) -> Unit = {},
) {
    private val topics = Topics(identity.id, population)
    private val session = Session(
        Environment(identity.id, identity.certificate, ::signOnce, ::verifyPeer, policy),
    )
    private var announcement: Announcement? = null
    private var coordinator: Bytes? = null
    private var checkedIn = false
    private var left = false // the announced round, by declining or otherwise
    private var notBefore = 0.0
    private var deferred = ""
    private var resendAt: Double? = null
    private val downloads = LinkedHashMap<Bytes, Download>()
    private var job: TrainingJob? = null
    private var out = ArrayList<Outgoing>()
    private val signatures = HashMap<Bytes, Bytes>() // of the open round, by the SHA-256 of what was signed
    private val newSignatures = ArrayList<Pair<Bytes, Bytes>>() // of this step

    public val deviceId: String get() = identity.id

    /** What is against training now, in words; empty where nothing is. */
    public var objections: List<String> = emptyList()
        private set

    /** Where the session stands. */
    public var state: State = State.Waiting
        private set

    /** The version of the newest installed model; 0 where there is none. */
    public var installedVersion: Long = store.number(INSTALLED_VERSION)
        private set

    /** How many rounds this device was in that are over, since this agent was made. */
    public var roundsEnded: Int = 0
        private set

    /** Whether the followed task is complete and its last model installed. */
    public val isDone: Boolean
        get() = announcement?.let { it.state == TaskState.COMPLETE && it.modelVersion <= installedVersion } ?: false

    // ---- what the driver calls

    /** The topics that the driver subscribes to. */
    public val subscriptions: List<String> get() = topics.subscriptions

    /** Folds the journal of a round that was open when the process ended, and takes it up again. */
    public fun start(now: Double): List<Outgoing> {
        coordinator = store.get(COORDINATOR)?.fromHex()?.let(::Bytes)
        fold(now)
        val base = Session.baseOf(state)
        if (base != null && now < base.expiresAt) carryOut(Session.resume(state), now)
        return tick(now)
    }

    /**
     * Sets the state that the journal gives, or leaves a round that this process cannot take up again: another version,
     * policy or certificate than the one that wrote the journal may not come to the same state.
     */
    private fun fold(now: Double) {
        val rid = store.journalRid ?: return
        var problem: String? = null
        for (entry in store.journal()) {
            signatures.putAll(entry.signatures)
            try {
                state = session.step(state, Journal.toEvent(entry), entry.at, entry.entropy).state
            } catch (error: ProtocolError) {
                problem = error.message
            } catch (error: StoreError) {
                problem = error.message
            }
            if (problem != null) break
        }
        (state as? State.Ended)?.let { problem = it.detail }
        if (problem == null && Session.roundId(state) != rid) problem = "its journal is of another round"
        if (problem != null) {
            log("$deviceId cannot take its open round up again: $problem")
            signatures.clear()
            store.endRound(rid, now, committed = false, detail = problem.orEmpty())
            state = State.Waiting
        }
    }

    /** The broker is reachable (again): repeats at once what may have been lost. */
    public fun connected(now: Double): List<Outgoing> {
        downloads.values.forEach { it.assembly.connectionLost() }
        if (awaitingAnswer) resendAt = now
        onEvent(Connected(population, now))
        return tick(now)
    }

    /** Takes in one message. What is not authentic or has no place is logged and changes nothing. */
    public fun receive(topic: String, payload: ByteArray, now: Double): List<Outgoing> {
        try {
            when (topics.incoming(topic)) {
                Incoming.ANNOUNCEMENT -> announced(payload, now)
                Incoming.CONTROL -> control(payload, now)
                Incoming.CHUNK -> chunk(payload, now)
                null -> throw RemoteProtocolError("nothing is expected there")
            }
        } catch (error: RemoteProtocolError) {
            log("$deviceId refused a message on ${topic.take(200)}: ${error.message}")
        } catch (error: IdentityError) {
            log("$deviceId refused a message on ${topic.take(200)}: ${error.message}")
        }
        return tick(now)
    }

    /** Lets time pass. */
    public fun tick(now: Double): List<Outgoing> {
        val base = Session.baseOf(state)
        if (base != null && now >= base.expiresAt) {
            apply(Event.Tick, now)
        } else if (base != null && !consented()) {
            apply(Event.Failed(DeclineReason.TASK_NOT_ALLOWED, "the device's owner no longer agrees"), now)
        }
        consider(now)
        request(now)
        resendAt?.let { if (awaitingAnswer && now >= it) repeat(now) }
        return out.also { out = ArrayList() }
    }

    /** Says what is against training now, in words; while anything is, the device joins no round. */
    public fun considerConditions(objections: List<String>, now: Double): List<Outgoing> {
        this.objections = objections
        return tick(now)
    }

    /** The training to run beside the loop, once. */
    public fun takeJob(): TrainingJob? = job.also { job = null }

    /** Carries a job out, on whichever thread; see [Learner.train]. The result goes to [trained] or [failed]. */
    public fun train(job: TrainingJob, now: () -> Double, shouldStop: () -> Boolean): Update? {
        var told = -1L
        val progress = { done: Int, steps: Int ->
            val percent = 100L * done / maxOf(1, steps)
            // A collector must not lose what matters more because steps are many.
            if (percent != told) onEvent(Training(population, now(), job.plan.roundNumber, done, steps))
            told = percent
        }
        return learner.train(job, progress, shouldStop)
    }

    /** A job ended well. */
    public fun trained(job: TrainingJob, update: Update, now: Double): List<Outgoing> {
        if (Session.roundId(state) != job.plan.rid) return tick(now)
        // There may be more examples than when the plan came.
        val refusal = Policy.exampleObjection(update.sampling, policy, store.samplings())
        if (refusal != null) {
            apply(Event.Failed(refusal.reason, refusal.detail), now)
            return tick(now)
        }
        update.sampling?.let { store.countExamples(job.plan.rid, it) }
        onEvent(Trained(population, now, job.plan.roundNumber, learner.exampleCount))
        apply(Event.Trained(update.values), now)
        return tick(now)
    }

    /** A job ended badly. */
    public fun failed(job: TrainingJob, error: EdgeError, now: Double): List<Outgoing> {
        if (Session.roundId(state) == job.plan.rid) {
            apply(Event.Failed(DeclineReason.TRAINING_FAILED, error.message.orEmpty()), now)
        }
        return tick(now)
    }

    /** When [tick] is next needed if nothing comes. */
    public fun nextDeadline(): Double? {
        val times = downloads.values.mapNotNullTo(ArrayList()) { it.assembly.nextDeadline }
        Session.baseOf(state)?.let { times.add(it.expiresAt) }
        if (awaitingAnswer) resendAt?.let { times.add(it) }
        if (isAsked && hindrance.isEmpty()) times.add(notBefore)
        return times.minOrNull()
    }

    // ---- what comes in

    private fun announced(payload: ByteArray, now: Double) {
        val frame = Codec.readFrame(payload)
        val peer = identity.registrar.verify(frame.certificate, Role.COORDINATOR, now)
        if (!Signing.verifyRaw(peer.publicKey, frame.signature, frame.signedFor(Codec.BROADCAST))) {
            throw RemoteProtocolError("an announcement whose signature is not the coordinator's")
        }
        val message = Codec.parseForDevice(frame)
        if (message !is Announcement || message.population != population) {
            throw RemoteProtocolError("not an announcement to this population")
        }
        if (!Topics.isId(message.task)) throw RemoteProtocolError("an announcement of a task that cannot be named")
        val heard = "sequence/${message.task}"
        if (java.lang.Long.compareUnsigned(message.sequence, store.number(heard)) < 0) {
            throw RemoteProtocolError("an announcement older than one already heard")
        }
        if (coordinator != frame.certificate) {
            coordinator = frame.certificate
            store.put(COORDINATOR, frame.certificate.hex())
        }
        val known = announcement
        if (known != null && known.task == message.task && known.sequence == message.sequence) return
        store.put(heard, java.lang.Long.toUnsignedString(message.sequence))
        announcement = message
        checkedIn = false
        left = store.hasEnded(message.rid)
        notBefore = now
        val base = Session.baseOf(state)
        if (base != null && message.task == base.plan.task && message.rid != base.plan.rid) apply(Event.Superseded, now)
        if (message.state == TaskState.COMPLETE && message.modelVersion > installedVersion) {
            fetch(listOf(message.bundle, message.checkpoint), now)
        }
    }

    private fun control(payload: ByteArray, now: Double, large: Boolean = false) {
        val certificate = coordinator ?: throw RemoteProtocolError("a message before any announcement: whose is it?")
        val frame = Codec.readFrame(payload, large)
        val peer = identity.registrar.verify(certificate, Role.COORDINATOR, now)
        if (!Signing.verifyRaw(peer.publicKey, frame.signature, frame.signedFor(deviceId))) {
            throw RemoteProtocolError("the signature is not the coordinator's")
        }
        when (val message = Codec.parseForDevice(frame)) {
            is Plan -> planned(message, frame.body, now)
            is RoundMessage -> if (message.rid == Session.roundId(state)) apply(Event.Received(message), now, frame.body)
            is Rejection -> rejected(message, now)
            is Pull -> {
                serve(message)
                scheduleResend(now) // The coordinator is at work on the offer: another would start it anew.
            }
            is Large -> large(message.frame)
            is Announcement -> throw RemoteProtocolError("an announcement on a device's own topic")
        }
    }

    private fun large(frame: BlobRef) {
        if (frame.sizeBytes !in 0..Limits.LARGE_FRAME_MAX_BYTES) {
            throw RemoteProtocolError("a frame of ${frame.sizeBytes} bytes is over the limit")
        }
        // One at a time: what this device lacks is the newest, and its memory is bounded.
        downloads.values.removeAll { it.isFrame && it.assembly.blob.sha256 != frame.sha256 }
        if (frame.sha256 !in downloads) {
            val parts = MemoryParts(frame.sizeBytes.toInt())
            downloads[frame.sha256] = Download(Assembly(frame, Limits.CHUNK_DEFAULT_BYTES, parts), parts, isFrame = true)
        }
    }

    private fun planned(plan: Plan, body: ByteArray, now: Double) {
        val current = Session.roundId(state)
        if (current != null && current != plan.rid) throw RemoteProtocolError("a plan while another round is under way")
        if (current == null && store.hasEnded(plan.rid)) {
            throw RemoteProtocolError("a plan of a round that this device already left")
        }
        val found = announcement
        if (found == null || found.rid != plan.rid || found.task != plan.task) {
            throw RemoteProtocolError("a plan of a round that is not announced")
        }
        if (learner.exampleCount < policy.minExamples) {
            val detail = "too few examples on this device"
            leave(plan, now, committed = false, reason = DeclineReason.NOT_ENOUGH_EXAMPLES, detail = detail)
            send(Decline(plan.rid, DeclineReason.NOT_ENOUGH_EXAMPLES, detail))
            return
        }
        apply(Event.PlanReceived(plan, Bytes(Suite.digest(body)), store.spending(plan.task)), now, body)
    }

    private fun rejected(message: Rejection, now: Double) {
        if (message.task != announcement?.task) return
        checkedIn = false
        val (after, spread) = listOf(message.retryAfterS, message.retrySpreadS).map {
            it.coerceIn(0.0, Limits.RETRY_MAX_S)
        }
        notBefore = now + after + share() * spread
        log("$deviceId was rejected: ${message.reason.name.lowercase(Locale.ROOT)}")
    }

    // ---- the session

    /** Steps the session; journals the event before anything of it is carried out. [body] of its message, as it came. */
    private fun apply(event: Event, now: Double, body: ByteArray = ByteArray(0)) {
        val entropy = randomBytes(ENTROPY_BYTES)
        newSignatures.clear()
        val step = session.step(state, event, now, entropy)
        val after = step.state
        if (after === state) {
            carryOut(step.effects, now)
            return
        }
        if (after is State.Ended) {
            leave(after.plan, now, after.committed, after.declined, after.detail)
            carryOut(step.effects, now)
            return
        }
        val (kind, payload) = Journal.fromEvent(event, body)
        val participation = step.effects.firstOrNull { it is Effect.Spend }?.let { participation(after, now) }
        // What was said must never be unsaid, not even by a power cut: a device that forgot could say another thing.
        val durable = step.effects.any { it is Effect.Send }
        val rid = checkNotNull(Session.roundId(after))
        store.append(rid, JournalEntry(now, kind, payload, entropy, newSignatures.toList()), participation, durable)
        state = after
        participation?.let {
            onEvent(Uploaded(population, now, it.roundNumber, it.sentBytes, it.epsilon, it.delta))
        }
        carryOut(step.effects, now)
    }

    private fun leave(plan: Plan, now: Double, committed: Boolean, reason: DeclineReason?, detail: String) {
        store.endRound(plan.rid, now, committed, detail)
        log("$deviceId left round ${plan.roundNumber}: $detail")
        roundsEnded++
        signatures.clear()
        state = State.Waiting
        downloads.values.forEach { it.parts.close() }
        downloads.clear()
        job = null
        left = left || announcement?.rid == plan.rid
        if (reason != null) {
            onEvent(Refused(population, now, plan.roundNumber, reason.name.lowercase(Locale.ROOT), detail))
        }
    }

    private fun participation(after: State, now: Double): Participation {
        val plan = checkNotNull(Session.baseOf(after)).plan
        val (sha256, vector) = checkNotNull(Session.maskedVector(after))
        val release = Policy.releaseOf(plan)
        val releases = store.participations(plan.task).map { it.release } + release
        val spent = Accounting.composedEpsilon(releases.map { policy.counted(it) to 1L }, plan.delta)
        return Participation(
            plan.rid, plan.task, plan.roundNumber, now, spent, plan.delta, vector.size, sha256, release,
        )
    }

    private fun carryOut(effects: List<Effect>, now: Double) {
        for (effect in effects) {
            when (effect) {
                is Effect.Send -> {
                    send(effect.message)
                    scheduleResend(now)
                }
                is Effect.Fetch -> fetch(listOf(effect.bundle, effect.checkpoint), now)
                is Effect.Train -> train(effect.plan, effect.seed, now)
                is Effect.Spend -> Unit // Written with the journal's entry, in one record.
            }
        }
    }

    private fun train(plan: Plan, seed: Bytes, now: Double) {
        try {
            job = TrainingJob(plan, bundle(plan.bundle), blobs.get(plan.checkpoint.sha256), seed)
        } catch (error: StoreError) {
            // Gone or damaged since it was checked: nothing of the round can be saved.
            apply(Event.Failed(DeclineReason.TRAINING_FAILED, error.message.orEmpty()), now)
        }
    }

    // ---- blobs

    private fun fetch(wanted: List<BlobRef>, now: Double) {
        if (wanted.any { it.sizeBytes !in 0..Limits.BLOB_MAX_BYTES }) {
            apply(Event.Failed(DeclineReason.BUNDLE_INVALID, "a blob larger than any device takes"), now)
            return
        }
        try {
            for (blob in wanted) if (!blobs.has(blob)) download(blob)
            for (download in downloads.values.filter { it.assembly.complete }) whole(download, now)
        } catch (error: RemoteProtocolError) {
            // What had come before a restart is not what was promised; it was dropped and is pulled anew.
            log("$deviceId: ${error.message}")
        } catch (error: StoreError) {
            // No room for it, for example: this round is lost for the device, not the device.
            log("$deviceId cannot fetch: ${error.message}")
            apply(Event.Failed(DeclineReason.BUNDLE_INVALID, error.message.orEmpty()), now)
        }
        arrived(now)
    }

    private fun download(blob: BlobRef) {
        if (blob.sha256 in downloads) return
        val parts = blobs.parts(blob, Limits.CHUNK_DEFAULT_BYTES)
        downloads[blob.sha256] = Download(Assembly(blob, Limits.CHUNK_DEFAULT_BYTES, parts), parts, isFrame = false)
    }

    private fun request(now: Double) {
        // A device that only serves has never checked in: the coordinator learns here who asks.
        val stranger = state === State.Waiting && !checkedIn
        val certificate = if (stranger) identity.certificate else Bytes.EMPTY
        for (download in downloads.values) {
            val ranges: List<ChunkRange> = download.assembly.requests(now)
            if (ranges.isEmpty()) continue
            val pull = Pull(
                download.assembly.blob.sha256,
                Limits.CHUNK_DEFAULT_BYTES.toLong(),
                ranges.map { it.first.toLong() },
                ranges.map { it.count.toLong() },
            )
            send(pull, certificate)
        }
    }

    private fun chunk(payload: ByteArray, now: Double) {
        val download = downloads.values.find { Chunks.isOf(payload, it.assembly.blob.sha256) }
            ?: throw RemoteProtocolError("a chunk that was not asked for")
        try {
            download.assembly.receive(payload, now)
        } catch (error: StoreError) {
            log("$deviceId cannot keep what it fetches: ${error.message}")
            apply(Event.Failed(DeclineReason.BUNDLE_INVALID, error.message.orEmpty()), now)
            return
        }
        if (download.assembly.complete) whole(download, now)
    }

    private fun whole(download: Download, now: Double) {
        val data = download.assembly.finish()
        downloads.remove(download.assembly.blob.sha256)
        if (download.isFrame) {
            control(data, now, large = true)
            return
        }
        try {
            download.parts.remove()
            blobs.put(data)
        } catch (error: StoreError) {
            log("$deviceId cannot keep what it fetched: ${error.message}")
            apply(Event.Failed(DeclineReason.BUNDLE_INVALID, error.message.orEmpty()), now)
        }
        arrived(now)
    }

    /** Goes on where bundle and checkpoint are now all here; where the bundle's head is, fetches what it names. */
    private fun arrived(now: Double) {
        val current = state
        val found = announcement
        if (current is State.Preparing) {
            val plan = checkNotNull(Session.baseOf(current)).plan
            try {
                if (complete(plan.bundle, plan.checkpoint, now)) {
                    check(plan)
                    val sampling = learner.sampling(bundle(plan.bundle), plan)
                    val refusal = Policy.exampleObjection(sampling, policy, store.samplings())
                    if (refusal != null) {
                        apply(Event.Failed(refusal.reason, refusal.detail), now)
                        return
                    }
                    install(plan.modelVersion, plan.bundle, plan.checkpoint, now)
                    apply(Event.Ready, now)
                }
            } catch (error: EdgeError) {
                val reason = invalid(error)
                apply(Event.Failed(DeclineReason.BUNDLE_INVALID, reason), now)
            }
        } else if (found != null && found.state == TaskState.COMPLETE) {
            try {
                if (complete(found.bundle, found.checkpoint, now)) {
                    install(found.modelVersion, found.bundle, found.checkpoint, now)
                }
            } catch (error: EdgeError) {
                log("$deviceId keeps its model: ${invalid(error)}")
            }
        }
    }

    /** What makes a bundle unusable, in words; any other error goes on. */
    private fun invalid(error: EdgeError): String = when (error) {
        is ArtifactError, is StoreError, is TrainingError -> error.message.orEmpty()
        else -> throw error
    }

    /** Whether the bundle with all parts needed here and the checkpoint have come; asks for parts that were not. */
    private fun complete(bundle: BlobRef, checkpoint: BlobRef, now: Double): Boolean {
        if (!blobs.has(bundle)) return false
        val parts = learner.parts(blobs.get(bundle.sha256))
        if (parts.any { it.sizeBytes !in 0..Limits.BLOB_MAX_BYTES } || parts.sumOf { it.sizeBytes } > Limits.BLOB_MAX_BYTES) {
            throw ArtifactError("the bundle is larger than any device takes")
        }
        val lacking = parts.filter { !blobs.has(it) }
        val new = lacking.filter { it.sha256 !in downloads }
        if (new.isNotEmpty()) {
            fetch(new, now) // which comes back here
            return false
        }
        if (lacking.isNotEmpty() || !blobs.has(checkpoint)) return false
        blobs.retain((parts + bundle + checkpoint).map { it.sha256 }.toSet())
        return true
    }

    private fun bundle(reference: BlobRef) = Bundle(blobs.get(reference.sha256)) { part -> blobs.get(part.sha256) }

    private fun check(plan: Plan) {
        val dimension = learner.check(bundle(plan.bundle), blobs.get(plan.checkpoint.sha256))
        if (dimension != plan.dimension) {
            throw ArtifactError("the bundle trains $dimension parameters; the plan says ${plan.dimension}")
        }
    }

    private fun install(version: Long, bundle: BlobRef, checkpoint: BlobRef, now: Double) {
        if (version <= installedVersion && store.get(INSTALLED_SHA256) == checkpoint.sha256.hex()) return
        learner.install(version, bundle(bundle), blobs.get(checkpoint.sha256))
        installedVersion = version
        store.put(INSTALLED_VERSION, version.toString())
        store.put(INSTALLED_SHA256, checkpoint.sha256.hex())
        onEvent(Installed(population, now, version))
    }

    private fun serve(pull: Pull) {
        val held = Session.maskedVector(state)
        if (held == null || pull.sha256 != held.first) throw RemoteProtocolError("a pull of something that is not offered")
        for (frame in Chunks.frames(held.first, held.second.array, pull)) {
            out.add(Outgoing(topics.chunksUp, frame, Limits.EXPIRY_CHUNK_S))
        }
    }

    // ---- checking in and repeating

    /** Whether there is a round to offer itself to. */
    private val isAsked: Boolean
        get() {
            val found = announcement ?: return false
            return state === State.Waiting && found.state == TaskState.OPEN && found.rid != NO_ROUND && !checkedIn &&
                !left && (policy.tasks.isEmpty() || found.task in policy.tasks)
        }

    /** What keeps the device from any round; empty where nothing. */
    private val hindrance: String
        get() = when {
            objections.isNotEmpty() -> objections.joinToString(", ")
            !consented() -> "no consent"
            learner.exampleCount < policy.minExamples -> "too few examples"
            else -> ""
        }

    private fun consider(now: Double) {
        if (!isAsked || now < notBefore) return
        val reason = hindrance
        // Said once for each reason in a row.
        if (reason.isNotEmpty() && reason != deferred) onEvent(Deferred(population, now, reason))
        deferred = reason
        if (reason.isEmpty()) {
            checkedIn = true
            checkIn()
            scheduleResend(now)
        }
    }

    private fun checkIn() {
        val found = announcement ?: return
        send(CheckIn(found.task, found.rid, SDK_VERSION, learner.runtimeVersion), identity.certificate)
    }

    private val awaitingAnswer: Boolean
        get() = if (state === State.Waiting) checkedIn && !left else Session.pending(state) != null

    private fun repeat(now: Double) {
        val message = Session.pending(state)
        if (message != null) send(message) else if (state === State.Waiting) checkIn()
        scheduleResend(now)
    }

    private fun scheduleResend(now: Double) {
        // Jitter, so that a fleet that lost its broker does not answer in one breath.
        resendAt = now + resendS * (1.0 + share())
    }

    /** A random share of 1. */
    private fun share(): Double {
        val bytes = randomBytes(2)
        return ((bytes[0].toInt() and 0xff) + 256 * (bytes[1].toInt() and 0xff)) / 65_536.0
    }

    private fun send(message: ToCoordinator, certificate: Bytes = Bytes.EMPTY) {
        val frame = Codec.writeFrame(message, deviceId, certificate, identity::sign)
        if (frame.size > Limits.CONTROL_FRAME_MAX_BYTES) {
            throw LocalProtocolError("a message of ${frame.size} bytes does not fit a control frame")
        }
        out.add(Outgoing(topics.controlUp, frame, Limits.EXPIRY_CONTROL_UP_S))
    }

    /** The identity key's signature, the same one for what this round signed before. */
    private fun signOnce(message: ByteArray): ByteArray {
        val digest = Bytes(Suite.digest(message))
        return signatures.getOrPut(digest) {
            Bytes(identity.sign(message)).also { newSignatures.add(digest to it) }
        }.array
    }

    private fun verifyPeer(certificate: Bytes, message: ByteArray, signature: ByteArray, now: Double): String {
        val peer = identity.registrar.verify(certificate, Role.DEVICE, now)
        if (!Signing.verifyRaw(peer.publicKey, signature, message)) {
            throw IdentityError("the signature is not ${peer.id}'s")
        }
        return peer.id
    }

    private class Download(val assembly: Assembly, val parts: PartStore, val isFrame: Boolean)

    internal companion object {
        const val SDK_VERSION: String = "0.1.0-kotlin"
        private const val ENTROPY_BYTES = 32
        private const val COORDINATOR = "coordinator"
        private const val INSTALLED_VERSION = "installed_version"
        private const val INSTALLED_SHA256 = "installed_sha256"
    }
}
