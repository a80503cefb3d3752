package edge.runtime

import edge.ArtifactError
import edge.BudgetExceeded
import edge.Bytes
import edge.Connected
import edge.DeviceEvent
import edge.EdgeError
import edge.Identity
import edge.IdentityError
import edge.LocalProtocolError
import edge.ProtocolError
import edge.Refused
import edge.RemoteProtocolError
import edge.StoreError
import edge.Trained
import edge.Training
import edge.TrainingError
import edge.Uploaded
import edge.privacy.Accounting
import edge.privacy.Sampling
import edge.protocol.Announcement
import edge.protocol.BlobRef
import edge.protocol.CheckIn
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
import edge.protocol.Objection
import edge.protocol.Plan
import edge.protocol.Policy
import edge.protocol.Pull
import edge.protocol.Rejection
import edge.protocol.RoundMessage
import edge.protocol.Session
import edge.protocol.State
import edge.protocol.ToCoordinator
import edge.protocol.Topics
import edge.secagg.Modular
import edge.secagg.Suite
import java.util.Locale

/**
 * A device without I/O loops: messages and time in, publications and training jobs out, everything durable in between.
 *
 * The agent carries out what the pure session decides: it authenticates, journals each accepted event before its effects,
 * fetches blobs, repeats what may be lost, installs models. It holds no socket, reads no clock, and never trains inside a
 * call: training is handed out as a job. Not for several threads, but for [train] and [isPaused].
 *
 * [learners] train and serve, by the population whose announcements they follow. While one population's round keeps the
 * device busy it offers itself to no other; of several that ask, to the one that it offered itself to longest ago. So
 * budgets are spent by one round at a time, and training never competes.
 *
 * [randomBytes] is secret randomness from the operating system; a message that brought no answer is repeated after
 * [resendS] seconds, up to twice as long by jitter; [consent] is the owner's, null where there is no owner to ask; [budget]
 * is of traffic and memory, as time and processor are the learner's; [freeMemory] tells the bytes that the machine has
 * left, null where it cannot tell; [onEvent] is told what happened once it is durable, from the training thread too, and
 * [log] what a developer may want to know.
 */
public class DeviceAgent(
    identity: Identity,
    learners: Map<String, Learner>,
    public val store: DeviceStore,
    private val blobs: BlobCache,
    private val policy: DevicePolicy,
    private val randomBytes: (Int) -> ByteArray,
    private val resendS: Double = 10.0,
    private val consent: Consent? = null,
    private val budget: Budget = Budget(),
    private val freeMemory: () -> Long? = { null },
    private val onEvent: (DeviceEvent) -> Unit = {},
    private val log: (String) -> Unit = {},
) {
    private val memberships = learners.mapValues { (name, learner) -> Membership(name, learner, store, onEvent) }
    private val topics = Topics(identity.id, learners.keys)
    private var frames = Frames(identity, topics.controlUp)
    private var session = sessionOf(identity)
    private var current: Membership? = null // whose round it is in
    private var savingUntil = 0.0 // what was to be sent and received was more than today allows
    private var resendAt: Double? = null
    private val traffic = Traffic(budget, store)
    private val downloads = Downloads(blobs)
    private var job: TrainingJob? = null
    private var out = ArrayList<Outgoing>()
    private val signatures = HashMap<Bytes, Bytes>() // of the open round, by the SHA-256 of what was signed
    private val newSignatures = ArrayList<Pair<Bytes, Bytes>>() // of this step

    public val deviceId: String get() = frames.identity.id

    /** The device's key and certificate; another one after [adopt]. For the transport, from any thread. */
    public val identity: Identity get() = frames.identity

    /** Where the session stands. */
    public var state: State = State.Waiting
        private set

    /** Whether a population's task is complete and its last model installed; of all populations where none is named. */
    public fun isComplete(population: String? = null): Boolean =
        memberships.values.filter { population == null || it.population == population }.all { it.isComplete }

    /** The version of the newest model that a population installed; 0 where there is none. */
    public fun installedVersion(population: String): Long = memberships[population]?.installedVersion ?: 0

    /** The populations of the rounds that this device was in and that are over, since this agent was made. */
    internal val ended = ArrayList<String>()

    // ---- what the driver calls

    /** The topics that the driver subscribes to. */
    public val subscriptions: List<String> get() = topics.subscriptions

    /** Folds the journal of a round that was open when the process ended, and takes it up again. */
    public fun start(now: Double): List<Outgoing> {
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
                val event = Journal.toEvent(entry)
                if (event is Event.PlanReceived) current = membershipOf(event.plan)
                state = session.step(state, event, entry.at, entry.entropy).state
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
            current = null
        }
    }

    private fun membershipOf(plan: Plan): Membership = memberships.values.find { it.task == plan.task }
        ?: throw StoreError(
            "the open round is of task '${plan.task}', which this device no longer follows",
            "join its population again to take part in it",
        )

    /** The broker is reachable (again): repeats at once what may have been lost. */
    public fun connected(now: Double): List<Outgoing> {
        for (population in memberships.keys) onEvent(Connected(population, now))
        return askAnew(now)
    }

    private fun askAnew(now: Double): List<Outgoing> {
        downloads.connectionLost()
        if (awaitingAnswer) resendAt = now
        return tick(now)
    }

    /** Takes in one message. What is not authentic or has no place is logged and changes nothing. */
    public fun receive(topic: String, payload: ByteArray, now: Double): List<Outgoing> {
        traffic.count(payload.size, now)
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
        } else if (base != null && !consented) {
            apply(Event.Failed(DeclineReason.TASK_NOT_ALLOWED, "the device's owner no longer agrees"), now)
        }
        catchUp(now)
        consider(now)
        request(now)
        resendAt?.let { if (awaitingAnswer && now >= it) repeat(now) }
        return out.also { out = ArrayList() }
    }

    /** So much of what it gave out was taken by the network. */
    public fun sent(sizeBytes: Int, now: Double): Unit = traffic.count(sizeBytes, now)

    /** Writes down what was received and sent lately, before the process ends. */
    public fun keepTraffic(): Unit = traffic.keep()

    /** Says what is against training now, in words, by population; while anything is, it joins no round there. */
    public fun considerConditions(objections: Map<String, List<String>>, now: Double): List<Outgoing> {
        for (membership in memberships.values) {
            val found = objections[membership.population].orEmpty()
            if (found == membership.objections) continue
            membership.objections = found
            membership.defer(found.joinToString(", "), now)
        }
        return tick(now)
    }

    /** Whether a job should wait before its next step; may be asked from any thread. */
    public fun isPaused(job: TrainingJob): Boolean = memberships.getValue(job.population).objections.isNotEmpty()

    /** Whether it has neither joined a round nor offered itself to one. */
    public val isBetweenRounds: Boolean get() = state === State.Waiting && !awaitingAnswer

    /**
     * Goes on with a renewed certificate and its key. A round is signed with one key from its begin to its end.
     *
     * Raises LocalProtocolError: not between rounds; IdentityError: the certificate is another device's.
     */
    public fun adopt(identity: Identity) {
        if (!isBetweenRounds) throw LocalProtocolError("a certificate is changed between rounds only")
        if (identity.id != deviceId) {
            throw IdentityError("the certificate of '${identity.id}' is not this device's, '$deviceId'")
        }
        frames = Frames(identity, topics.controlUp)
        session = sessionOf(identity)
    }

    private fun sessionOf(identity: Identity) = Session(
        Environment(
            identity.id,
            identity.certificate,
            ::signOnce,
            { certificate, message, signature, now -> frames.verifyPeer(certificate, message, signature, now) },
            policy,
        ),
    )

    /** The clock was put back: what waits for a time of the old clock would wait for ever. */
    public fun clockSetBack(now: Double): List<Outgoing> {
        savingUntil = minOf(savingUntil, Budget.nextDay(now))
        for (membership in memberships.values) {
            membership.notBefore = minOf(membership.notBefore, now)
            membership.offeredAt = minOf(membership.offeredAt, now)
        }
        return askAnew(now)
    }

    /** The training to run beside the loop, once. */
    public fun takeJob(): TrainingJob? = job.also { job = null }

    /** Carries a job out, on whichever thread; see [Learner.train]. The result goes to [trained] or [failed]. */
    public fun train(job: TrainingJob, now: () -> Double, shouldStop: () -> Boolean): Update? {
        var told = -1L
        val progress = { done: Int, steps: Int ->
            val percent = 100L * done / maxOf(1, steps)
            // A collector must not lose what matters more because steps are many.
            if (percent != told) onEvent(Training(job.population, now(), job.plan.roundNumber, done, steps))
            told = percent
        }
        return memberships.getValue(job.population).learner.train(job, progress, shouldStop)
    }

    /** A job ended well. */
    public fun trained(job: TrainingJob, update: Update, now: Double): List<Outgoing> {
        if (Session.roundId(state) != job.plan.rid) return tick(now)
        // There may be more examples than when the plan came.
        if (declined(exampleObjection(update.sampling), now)) return tick(now)
        update.sampling?.let { store.countExamples(job.plan.rid, it) }
        val examples = memberships.getValue(job.population).learner.exampleCount
        onEvent(Trained(job.population, now, job.plan.roundNumber, examples))
        apply(Event.Trained(update.values), now)
        return tick(now)
    }

    private fun exampleObjection(sampling: Sampling?): Objection? =
        Policy.exampleObjection(sampling, policy, store.samplings())

    /** A job ended badly. */
    public fun failed(job: TrainingJob, error: EdgeError, now: Double): List<Outgoing> {
        if (Session.roundId(state) == job.plan.rid) {
            val reason = if (error is BudgetExceeded) DeclineReason.OVER_TIME_BUDGET else DeclineReason.TRAINING_FAILED
            apply(Event.Failed(reason, error.message.orEmpty()), now)
        }
        return tick(now)
    }

    /** When [tick] is next needed if nothing comes. */
    public fun nextDeadline(): Double? {
        val times = ArrayList(downloads.deadlines)
        if (awaitingAnswer) resendAt?.let { times.add(it) }
        val base = Session.baseOf(state)
        if (base != null) {
            times.add(base.expiresAt)
        } else {
            if (downloads.isEmpty && memberships.values.any { it.wantsModel }) times.add(savingUntil)
            val freeAt = offered?.offerExpiresAt ?: Double.NEGATIVE_INFINITY
            asking().filter { hindrance(it).isEmpty() }.mapTo(times) { maxOf(it.notBefore, freeAt) }
        }
        return times.minOrNull()
    }

    // ---- what comes in

    private fun announced(payload: ByteArray, now: Double) {
        val (message, certificate) = frames.announcement(payload, now)
        val membership = memberships[message.population]
            ?: throw RemoteProtocolError("not an announcement to a population of this device's")
        if (!membership.hear(message, certificate, now)) return
        membership.notBefore = maxOf(now, savingUntil)
        val base = Session.baseOf(state)
        if (base != null && message.task == base.plan.task && message.rid != base.plan.rid) apply(Event.Superseded, now)
    }

    private fun control(payload: ByteArray, now: Double, large: Boolean = false) {
        val frame = Codec.readFrame(payload, large)
        val certificates = memberships.values.mapNotNullTo(LinkedHashSet()) { it.coordinator }
        if (certificates.isEmpty()) throw RemoteProtocolError("a message before any announcement: whose is it?")
        val signer = frames.signerOf(frame, certificates, now)
        val heard = memberships.values.filter { it.coordinator == signer }
        when (val message = Codec.parseForDevice(frame)) {
            is Plan -> planned(message, frame.body, heard, now)
            is RoundMessage ->
                if (message.rid == Session.roundId(state) && current in heard) apply(Event.Received(message), now, frame.body)
            is Rejection -> heard.forEach { rejected(it, message, now) }
            is Pull -> {
                serve(message)
                scheduleResend(now) // The coordinator is at work on the offer: another would start it anew.
            }
            is Large -> {
                if (message.frame.sizeBytes !in 0..Limits.LARGE_FRAME_MAX_BYTES) {
                    throw RemoteProtocolError("a frame of ${message.frame.sizeBytes} bytes is over the limit")
                }
                downloads.wantFrame(message.frame)
            }
            is Announcement -> throw RemoteProtocolError("an announcement on a device's own topic")
        }
    }

    private fun planned(plan: Plan, body: ByteArray, heard: List<Membership>, now: Double) {
        val round = Session.roundId(state)
        if (round == null && store.hasEnded(plan.rid)) {
            throw RemoteProtocolError("a plan of a round that this device already left")
        }
        val announced = heard.find { it.announces(plan) }
        if (announced == null || (round == plan.rid && announced !== current)) {
            throw RemoteProtocolError("a plan of a round that is not announced")
        }
        if (round != null && round != plan.rid) {
            if (announced === current) throw RemoteProtocolError("a plan while another round is under way")
            refuseBeside(announced, plan, now)
            return
        }
        current = announced
        if (!consented) {
            refuse(plan, DeclineReason.TASK_NOT_ALLOWED, "the device's owner does not agree", now)
        } else if (announced.learner.exampleCount < policy.minExamples) {
            refuse(plan, DeclineReason.NOT_ENOUGH_EXAMPLES, "too few examples on this device", now)
        } else {
            apply(Event.PlanReceived(plan, Bytes(Suite.digest(body)), store.spending(plan.task)), now, body)
        }
    }

    /** Refuses a plan that the session is not even asked about. */
    private fun refuse(plan: Plan, reason: DeclineReason, detail: String, now: Double) {
        leave(plan, now, committed = false, reason = reason, detail = detail)
        send(Decline(plan.rid, reason, detail))
    }

    /** Refuses a plan that comes late, in another population's round: nobody is to wait for the device. */
    private fun refuseBeside(membership: Membership, plan: Plan, now: Double) {
        val (reason, detail) = DeclineReason.ROUND_ALREADY_JOINED to "another population's round is under way"
        log("$deviceId declines round ${plan.roundNumber} of ${plan.task}: $detail")
        membership.leave(plan)
        onEvent(Refused(membership.population, now, plan.roundNumber, reason.name.lowercase(Locale.ROOT), detail))
        send(Decline(plan.rid, reason, detail))
    }

    private fun rejected(membership: Membership, message: Rejection, now: Double) {
        if (membership.announcement == null || message.task != membership.task) return
        membership.checkedIn = false
        val (after, spread) = listOf(message.retryAfterS, message.retrySpreadS).map {
            it.coerceIn(0.0, Limits.RETRY_MAX_S)
        }
        membership.notBefore = now + after + share() * spread
        val reason = message.reason.name.lowercase(Locale.ROOT)
        log("$deviceId was rejected: $reason")
        membership.defer(reason, now)
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
            onEvent(Uploaded(populationNow, now, it.roundNumber, it.sentBytes, it.epsilon, it.delta))
        }
        carryOut(step.effects, now)
    }

    private val populationNow: String get() = current?.population.orEmpty()

    private fun leave(plan: Plan, now: Double, committed: Boolean, reason: DeclineReason?, detail: String) {
        store.endRound(plan.rid, now, committed, detail)
        traffic.keep()
        log("$deviceId left round ${plan.roundNumber}: $detail")
        val population = populationNow
        state = State.Waiting
        current = null
        signatures.clear()
        downloads.close()
        job = null
        memberships.values.forEach { it.leave(plan) }
        if (reason != null) {
            onEvent(Refused(population, now, plan.roundNumber, reason.name.lowercase(Locale.ROOT), detail))
        }
        ended.add(population)
    }

    private fun participation(after: State, now: Double): Participation {
        val plan = checkNotNull(Session.baseOf(after)).plan
        val (sha256, vector) = checkNotNull(Session.maskedVector(after))
        val release = Policy.releaseOf(plan)
        val releases = store.participations(plan.task).map { it.release } + release
        val spent = Accounting.composedEpsilon(releases.map { policy.counted(it) to 1L }, plan.delta)
        return Participation(
            plan.rid, plan.task, plan.roundNumber, now, spent, plan.delta, vector.size, sha256, release,
            consent?.newest?.purpose.orEmpty(),
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
            job = TrainingJob(plan, bundle(plan.bundle), blobs.get(plan.checkpoint.sha256), seed, populationNow)
        } catch (error: StoreError) {
            // Gone or damaged since it was checked: nothing of the round can be saved.
            apply(Event.Failed(DeclineReason.TRAINING_FAILED, error.message.orEmpty()), now)
        }
    }

    // ---- blobs

    /** Why these are not fetched today, and the round's update not sent after them; null where they are. */
    private fun saves(wanted: List<BlobRef>, now: Double): Objection? {
        var missing = downloads.missingBytes
        for (blob in wanted) if (blob.sha256 !in downloads && !blobs.has(blob)) missing += blob.sizeBytes
        Session.baseOf(state)?.let { missing += Modular.packedBytes(Policy.encodingOf(it.plan).length, it.plan.bits) }
        val refusal = traffic.objection(missing, now) ?: return null
        savingUntil = Budget.nextDay(now)
        for (membership in memberships.values) {
            membership.notBefore = maxOf(membership.notBefore, savingUntil)
            membership.defer(refusal.detail, now)
        }
        return refusal
    }

    /** Leaves the round where there is a refusal; tells whether there was. */
    private fun declined(refusal: Objection?, now: Double): Boolean {
        if (refusal != null) apply(Event.Failed(refusal.reason, refusal.detail), now)
        return refusal != null
    }

    private fun fetch(wanted: List<BlobRef>, now: Double) {
        if (wanted.any { it.sizeBytes !in 0..Limits.BLOB_MAX_BYTES }) {
            fetchFailed("a blob larger than any device takes", now)
            return
        }
        try {
            val refusal = saves(wanted, now)
            if (refusal != null) {
                declined(refusal, now)
                return
            }
            for (blob in wanted) if (!blobs.has(blob)) downloads.want(blob)
            for (download in downloads.whole) {
                // One that came before may have ended the round, and with it the others.
                if (download.assembly.blob.sha256 in downloads) whole(download, now)
            }
        } catch (error: RemoteProtocolError) {
            // What had come before a restart is not what was promised; it was dropped and is pulled anew.
            log("$deviceId: ${error.message}")
        } catch (error: StoreError) {
            // No room for it, for example: this round is lost for the device, not the device.
            fetchFailed(error.message.orEmpty(), now)
        }
        arrived(now)
    }

    /** What was fetched for a round ends it; what was fetched to serve is wanted again at the next announcement. */
    private fun fetchFailed(detail: String, now: Double) {
        log("$deviceId cannot fetch: $detail")
        if (state === State.Waiting) {
            memberships.values.forEach { it.wantsModel = false }
        } else {
            apply(Event.Failed(DeclineReason.BUNDLE_INVALID, detail), now)
        }
    }

    /** Between rounds, fetches the models of tasks that are complete, on a day whose traffic allows it. */
    private fun catchUp(now: Double) {
        if (state !== State.Waiting || !downloads.isEmpty) return
        for (membership in memberships.values) {
            val found = membership.announcement
            if (membership.wantsModel && found != null && now >= savingUntil) {
                fetch(listOf(found.bundle, found.checkpoint), now)
            }
        }
    }

    private fun request(now: Double) {
        // A device that only serves has never checked in: the coordinator learns here who asks.
        val stranger = state === State.Waiting && !awaitingAnswer
        for (pull in downloads.requests(now)) send(pull, certified = stranger)
    }

    private fun chunk(payload: ByteArray, now: Double) {
        val download = try {
            downloads.receive(payload, now)
        } catch (error: StoreError) {
            fetchFailed(error.message.orEmpty(), now)
            return
        }
        if (download != null) whole(download, now)
    }

    private fun whole(download: Download, now: Double) {
        val data = downloads.finish(download)
        if (download.isFrame) {
            control(data, now, large = true)
            return
        }
        try {
            blobs.put(data)
        } catch (error: StoreError) {
            fetchFailed(error.message.orEmpty(), now)
        }
        arrived(now)
    }

    /** Goes on where bundle and checkpoint are now all here; where the bundle's head is, fetches what it names. */
    private fun arrived(now: Double) {
        val (found, membership) = state to current
        if (found is State.Preparing && membership != null) {
            val plan = checkNotNull(Session.baseOf(found)).plan
            try {
                prepared(membership, plan, now)
            } catch (error: EdgeError) {
                apply(Event.Failed(DeclineReason.BUNDLE_INVALID, invalid(error)), now)
            }
            return
        }
        for (other in memberships.values) {
            val announced = other.announcement
            if (!other.wantsModel || announced == null) continue
            try {
                if (complete(other, announced.bundle, announced.checkpoint, now)) {
                    other.wantsModel = false
                    val checkpoint = blobs.get(announced.checkpoint.sha256)
                    other.install(announced.modelVersion, bundle(announced.bundle), announced.checkpoint, checkpoint, now)
                }
            } catch (error: EdgeError) {
                other.wantsModel = false
                log("$deviceId keeps its model: ${invalid(error)}")
            }
        }
    }

    private fun prepared(membership: Membership, plan: Plan, now: Double) {
        if (declined(memoryObjection(membership, plan), now)) return
        if (!complete(membership, plan.bundle, plan.checkpoint, now)) return
        val (bundle, checkpoint) = bundle(plan.bundle) to blobs.get(plan.checkpoint.sha256)
        val dimension = membership.learner.check(bundle, checkpoint)
        if (dimension != plan.dimension) {
            throw ArtifactError("the bundle trains $dimension parameters; the plan says ${plan.dimension}")
        }
        if (declined(exampleObjection(membership.learner.sampling(bundle, plan)), now)) return
        membership.install(plan.modelVersion, bundle, plan.checkpoint, checkpoint, now)
        apply(Event.Ready, now)
    }

    /** Why the plan's training is too large for this device, as soon as the bundle's head tells. */
    private fun memoryObjection(membership: Membership, plan: Plan): Objection? {
        if (!blobs.has(plan.bundle)) return null
        val needed = membership.learner.memoryBytes(blobs.get(plan.bundle.sha256), plan)
        membership.needs = plan.bundle.sha256 to needed
        return budget.memoryObjection(needed, freeMemory())
    }

    /** What makes a bundle unusable, in words; any other error goes on. */
    private fun invalid(error: EdgeError): String = when (error) {
        is ArtifactError, is StoreError, is TrainingError -> error.message.orEmpty()
        else -> throw error
    }

    /** Whether the bundle with all parts needed here and the checkpoint have come; asks for parts that were not. */
    private fun complete(membership: Membership, bundle: BlobRef, checkpoint: BlobRef, now: Double): Boolean {
        if (!blobs.has(bundle)) return false
        val parts = membership.learner.parts(blobs.get(bundle.sha256))
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
        membership.keep((parts + bundle + checkpoint).mapTo(HashSet()) { it.sha256 })
        blobs.retain(memberships.values.flatMapTo(HashSet()) { it.blobs })
        return true
    }

    private fun bundle(reference: BlobRef) = Bundle(blobs.get(reference.sha256)) { part -> blobs.get(part.sha256) }

    private fun serve(pull: Pull) {
        val held = Session.maskedVector(state)
        if (held == null || pull.sha256 != held.first) throw RemoteProtocolError("a pull of something that is not offered")
        for (frame in Chunks.frames(held.first, held.second.array, pull)) {
            out.add(Outgoing(topics.chunksUp, frame, Limits.EXPIRY_CHUNK_S))
        }
    }

    // ---- checking in and repeating

    private val consented: Boolean get() = consent?.granted ?: true

    /** Populations whose round the device could join; the one it offered itself to longest ago comes first. */
    private fun asking(): List<Membership> =
        if (state !== State.Waiting) emptyList() else memberships.values.filter { it.isAsked }.sortedBy { it.offeredAt }

    /** What the device lacks for any round; empty where nothing. */
    private fun hindrance(membership: Membership): String {
        if (!consented) return "no consent"
        if (policy.tasks.isNotEmpty() && membership.task !in policy.tasks) {
            return "task '${membership.task}' is not among those allowed"
        }
        if (membership.learner.exampleCount < policy.minExamples) return "too few examples"
        val (bundle, needed) = membership.needs ?: return ""
        if (bundle != membership.announcement?.bundle?.sha256) return ""
        return budget.memoryObjection(needed, freeMemory())?.detail.orEmpty()
    }

    /** To whom the device offered itself, waiting for an answer. */
    private val offered: Membership?
        get() = if (state === State.Waiting) memberships.values.find { it.checkedIn && !it.left } else null

    /** Offers the device to whom it is due, unless it waits for another's answer. */
    private fun consider(now: Double) {
        for (membership in asking()) {
            if (now < membership.notBefore) continue
            val hindrance = hindrance(membership)
            if (hindrance.isEmpty() && saves(emptyList(), now) != null) continue
            membership.defer(hindrance, now)
            val before = offered
            if (hindrance.isNotEmpty() || (before != null && now < before.offerExpiresAt)) continue
            before?.checkedIn = false
            membership.checkedIn = true
            membership.offeredAt = now
            checkIn(membership)
            scheduleResend(now)
        }
    }

    private fun checkIn(membership: Membership) {
        val found = membership.announcement ?: return
        send(CheckIn(found.task, found.rid, SDK_VERSION, membership.learner.runtimeVersion), certified = true)
    }

    private val awaitingAnswer: Boolean
        get() = if (state === State.Waiting) offered != null else Session.pending(state) != null

    private fun repeat(now: Double) {
        val message = Session.pending(state)
        if (message != null) send(message) else offered?.let { checkIn(it) }
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

    private fun send(message: ToCoordinator, certified: Boolean = false) {
        out.add(frames.write(message, certified))
    }

    /** The identity key's signature, the same one for what this round signed before. */
    private fun signOnce(message: ByteArray): ByteArray {
        val digest = Bytes(Suite.digest(message))
        return signatures.getOrPut(digest) {
            Bytes(identity.sign(message)).also { newSignatures.add(digest to it) }
        }.array
    }

    internal companion object {
        const val SDK_VERSION: String = "0.1.0-kotlin"
        private const val ENTROPY_BYTES = 32
    }
}
