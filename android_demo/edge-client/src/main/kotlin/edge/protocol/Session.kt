package edge.protocol

import edge.Bytes
import edge.RemoteProtocolError
import edge.TrainingError
import edge.privacy.Encode
import edge.secagg.Client
import edge.secagg.HeldShares
import edge.secagg.Modular
import edge.secagg.Peer
import edge.secagg.RoundKeys
import edge.secagg.Suite
import java.nio.ByteBuffer
import java.nio.ByteOrder
import java.util.Locale

/**
 * What a session may lean on: who the device is and how it checks its peers.
 *
 * [deviceId] is the common name in its [certificate] (DER); [sign] its identity key's signature over given bytes, 64
 * bytes, deterministic; [verifyPeer] as in [VerifyPeer], at a time in seconds since the epoch; [policy] the device's own
 * floors.
 */
public class Environment(
    public val deviceId: String,
    public val certificate: Bytes,
    public val sign: (ByteArray) -> ByteArray,
    public val verifyPeer: (certificate: Bytes, message: ByteArray, signature: ByteArray, now: Double) -> String,
    public val policy: DevicePolicy,
)

/** What happens to a session. */
public sealed interface Event {
    /** An authenticated plan, the digest of its body's bytes, and what left the device before. */
    public class PlanReceived(public val plan: Plan, public val digest: Bytes, public val spending: Spending) : Event

    /** Bundle and checkpoint are here, verified. */
    public object Ready : Event

    /** Training ended; the update is float32 in layout order, little-endian bytes. */
    public class Trained(public val update: Bytes) : Event

    /** The device cannot go on. */
    public class Failed(public val reason: DeclineReason, public val detail: String) : Event

    /** An authenticated message of the coordinator's that carries a round id. */
    public class Received(public val message: RoundMessage) : Event

    /** Time passed. */
    public object Tick : Event

    /** The coordinator announced a later round, so this one is over, however it ended. */
    public object Superseded : Event
}

/** What should happen after a step. */
public sealed interface Effect {
    /** Send this to the coordinator, and again until the session moves on. */
    public class Send(public val message: ToCoordinator) : Effect

    /** Make these blobs present and verified, then say Ready. */
    public class Fetch(public val bundle: BlobRef, public val checkpoint: BlobRef) : Effect

    /** Train by the plan from its checkpoint, then say Trained or Failed. [seed] orders the examples. */
    public class Train(public val plan: Plan, public val seed: Bytes) : Effect

    /** The masked input is about to leave: enter this participation in the device's own ledger. */
    public class Spend(public val plan: Plan) : Effect
}

/** What holds for the whole round. */
public class Base internal constructor(
    public val plan: Plan,
    internal val context: ByteArray,
    public val expiresAt: Double,
)

/** Where a session stands: each state holds what the next stage needs and nothing else. */
public sealed interface State {
    /** No round. */
    public object Waiting : State

    /** The plan is accepted; bundle and checkpoint are on their way. */
    public class Preparing internal constructor(internal val base: Base) : State

    /** Stage 1 done: our keys are out, the roster is awaited. */
    public class Advertised internal constructor(
        internal val base: Base,
        internal val seed: Bytes,
        internal val keys: RoundKeys,
        internal val message: AdvertiseKeys,
        internal val update: Bytes?,
    ) : State

    /** Stage 3 done: our secrets are shared, the boxes of others are awaited. */
    public class Shared internal constructor(
        internal val base: Base,
        internal val seed: Bytes,
        internal val keys: RoundKeys,
        internal val roster: Roster,
        internal val peers: List<Peer>,
        internal val selfSeed: ByteArray,
        internal val message: ShareKeys,
        internal val update: Bytes?,
    ) : State

    /** Boxes are open and U2 is known; only the update is missing. */
    public class Holding internal constructor(
        internal val shared: Shared,
        internal val sharers: Bytes,
        internal val shares: Map<Int, HeldShares>,
    ) : State

    /** Stage 4 done: the masked input is ready to be taken; the survivors are awaited. */
    public class Reported internal constructor(
        internal val holding: Holding,
        internal val vector: Bytes,
        internal val message: MaskedInput,
        internal val receipt: ReceiptStatus?,
    ) : State

    /** Stage 5a done, by a member of the committee: these survivors and no others; the quorum is awaited. */
    public class Endorsed internal constructor(
        internal val reported: Reported,
        internal val survivors: Survivors,
        internal val message: Endorsement,
    ) : State

    /** Stage 6 done, once and for all. */
    public class Answered internal constructor(
        internal val reported: Reported,
        internal val survivors: Survivors,
        internal val message: UnmaskingShares,
    ) : State

    /** The round is over for this device: [committed] by the coordinator's word, or left for the reason [declined]. */
    public class Ended internal constructor(
        public val plan: Plan,
        public val committed: Boolean,
        public val declined: DeclineReason?,
        public val detail: String,
    ) : State
}

/** The next state and what should happen. */
public class Step internal constructor(public val state: State, public val effects: List<Effect> = emptyList())

/**
 * A device's part in one round, as a pure state machine: (state, event, now, entropy) -> (state, effects).
 *
 * From the accepted plan to the outcome, by the stages of SA-1 (PROTOCOL.md 9.3). Secrets come from `entropy`, 32 fresh
 * bytes from the operating system with every step, so a journal of (event, now, entropy) replays a session byte for
 * byte: that is how a restarted device resumes, and why it can never answer twice with different sets. It knows no
 * clock, socket, disk or log, and does no training: effects say what should happen, later events say that it has.
 */
public class Session(private val environment: Environment) {
    /**
     * The next state and what should happen.
     *
     * [now] is in seconds since the epoch, by the device's clock; [entropy] 32 fresh secret bytes, where a replay passes
     * the journal's. Raises RemoteProtocolError where the coordinator's message has no place in this state, which holds.
     */
    public fun step(state: State, event: Event, now: Double, entropy: ByteArray): Step = try {
        advance(state, event, now, entropy)
    } catch (refusal: Unsound) {
        decline(state, refusal.reason, refusal.detail)
    }

    private fun advance(state: State, event: Event, now: Double, entropy: ByteArray): Step {
        if (event is Event.PlanReceived) return join(state, event, now)
        val base = baseOf(state) ?: return Step(state)
        if (now >= base.expiresAt) return Step(State.Ended(base.plan, false, null, "the round expired"))
        return when (event) {
            is Event.PlanReceived, Event.Tick -> Step(state)
            Event.Superseded -> Step(State.Ended(base.plan, false, null, "a later round was announced"))
            is Event.Failed -> throw Unsound(event.reason, event.detail)
            Event.Ready -> advertise(state, entropy)
            is Event.Trained -> trained(state, event.update, entropy)
            is Event.Received -> received(state, base, event.message, now, entropy)
        }
    }

    private fun received(state: State, base: Base, message: RoundMessage, now: Double, entropy: ByteArray): Step {
        if (message.rid != base.plan.rid) throw RemoteProtocolError("a message of another round")
        return when (message) {
            is Roster -> share(state, message, now, entropy)
            is ShareDelivery -> hold(state, message, entropy)
            is Survivors -> survivors(state, message)
            is Quorum -> quorum(state, message, now)
            is Receipt -> receipt(state, message)
            is Outcome -> {
                val detail = if (message.committed) "committed" else "abandoned: ${words(message.reason)}"
                Step(State.Ended(base.plan, message.committed, null, detail))
            }
        }
    }

    private fun decline(state: State, reason: DeclineReason, detail: String): Step {
        val base = baseOf(state) ?: return Step(state)
        return declined(base.plan, reason, detail)
    }

    private fun declined(plan: Plan, reason: DeclineReason, detail: String): Step {
        val message = Decline(plan.rid, reason, detail.take(200))
        return Step(State.Ended(plan, false, reason, detail), listOf(Effect.Send(message)))
    }

    private fun join(state: State, event: Event.PlanReceived, now: Double): Step {
        val plan = event.plan
        val current = roundId(state)
        if (current == plan.rid) return repeat(state)
        if (current != null) throw RemoteProtocolError("a plan while another round is under way")
        Policy.objection(plan, environment.policy, event.spending)?.let { return declined(plan, it.reason, it.detail) }
        val model = Suite.digest(plan.bundle.sha256.array, plan.checkpoint.sha256.array)
        val context = Suite.context(plan.rid.array, event.digest.array, model)
        val base = Base(plan, context, now + plan.expiresAfterS)
        return Step(State.Preparing(base), listOf(Effect.Fetch(plan.bundle, plan.checkpoint)))
    }

    private fun advertise(state: State, entropy: ByteArray): Step {
        if (state !is State.Preparing) return Step(state)
        val base = state.base
        val keys = Client.roundKeys(Suite.derive(entropy, "round keys"))
        val seed = Bytes(Suite.derive(entropy, "training order"))
        val channel = keys.channel.public
        val mask = keys.mask.public
        val signature = Bytes(environment.sign(Client.advertisement(base.context, channel, mask)))
        val message = AdvertiseKeys(base.plan.rid, channel, mask, signature)
        val effects = listOf(Effect.Send(message), Effect.Train(base.plan, seed))
        return Step(State.Advertised(base, seed, keys, message, null), effects)
    }

    private fun share(state: State, roster: Roster, now: Double, entropy: ByteArray): Step {
        if (state !is State.Advertised) return repeat(state)
        val base = state.base
        Checks.requireSoundRoster(
            base.plan,
            base.context,
            environment.deviceId,
            environment.certificate,
            state.message,
            state.keys,
            roster,
            verifier(now),
        )
        val peers = roster.neighbours.map { Peer(it.index.toInt(), it.channelPublic, it.maskPublic) }
        val selfSeed = Suite.derive(entropy, "self seed")
        val sealed = Client.sealShares(
            state.keys,
            selfSeed,
            base.context,
            roster.root.array,
            roster.index.toInt(),
            peers,
            roster.threshold.toInt(),
            Suite.derive(entropy, "shares"),
        )
        val message = ShareKeys(
            base.plan.rid,
            Bytes(sealed.commitment),
            sealed.boxes.map { it.first.toLong() },
            joined(sealed.boxes.map { it.second }),
        )
        // The proofs have served.
        val known = roster.copy(
            proof = Bytes.EMPTY,
            neighbours = roster.neighbours.map { it.copy(proof = Bytes.EMPTY) },
        )
        val shared = State.Shared(base, state.seed, state.keys, known, peers, selfSeed, message, state.update)
        return Step(shared, listOf(Effect.Send(message)))
    }

    private fun verifier(now: Double): VerifyPeer = { certificate, message, signature ->
        environment.verifyPeer(certificate, message, signature, now)
    }

    private fun hold(state: State, delivery: ShareDelivery, entropy: ByteArray): Step {
        if (state !is State.Shared) return repeat(state)
        val roster = state.roster
        val senders = Checks.requireSoundDelivery(state.base.plan, roster, delivery)
        val peers = state.peers.associateBy { it.index }
        val shares = LinkedHashMap<Int, HeldShares>()
        senders.forEachIndexed { position, index ->
            val at = Client.BOX_BYTES * position
            val box = delivery.boxes.array.copyOfRange(at, at + Client.BOX_BYTES)
            try {
                shares[index] = Client.openBox(
                    state.keys,
                    state.base.context,
                    roster.root.array,
                    roster.index.toInt(),
                    peers.getValue(index),
                    box,
                )
            } catch (_: RemoteProtocolError) {
                // A bad neighbour costs the round its share, not this device; the threshold allows for some.
            }
        }
        if (shares.size < roster.threshold) {
            throw Unsound(DeclineReason.SURVIVORS_UNSOUND, "only ${shares.size} boxes could be opened")
        }
        val holding = State.Holding(state, delivery.sharers, shares)
        return if (state.update != null) report(holding, state.update, entropy) else Step(holding)
    }

    private fun trained(state: State, update: Bytes, entropy: ByteArray): Step = when {
        state is State.Advertised && state.update == null ->
            Step(State.Advertised(state.base, state.seed, state.keys, state.message, update))
        state is State.Shared && state.update == null -> Step(withUpdate(state, update))
        state is State.Holding -> report(state, update, entropy)
        else -> Step(state)
    }

    private fun withUpdate(state: State.Shared, update: Bytes?) = State.Shared(
        state.base, state.seed, state.keys, state.roster, state.peers, state.selfSeed, state.message, update,
    )

    private fun report(holding: State.Holding, update: Bytes, entropy: ByteArray): Step {
        val shared = holding.shared
        val plan = shared.base.plan
        val context = shared.base.context
        val roster = shared.roster
        if (update.size.toLong() != 4 * plan.dimension) {
            throw Unsound(
                DeclineReason.TRAINING_FAILED,
                "an update of ${update.size} bytes; the plan says ${plan.dimension} float32 values",
            )
        }
        val values = FloatArray(update.size / 4)
        ByteBuffer.wrap(update.array).order(ByteOrder.LITTLE_ENDIAN).asFloatBuffer().get(values)
        val encoded = try {
            Encode.encode(values, Policy.encodingOf(plan), context, Suite.derive(entropy, "encode"))
        } catch (error: TrainingError) {
            throw Unsound(DeclineReason.TRAINING_FAILED, error.message.orEmpty())
        }
        val maskedFor = Checks.sharersDigest(holding.sharers).array
        val sharers = members(holding.sharers, roster.size.toInt()).orEmpty()
        val masked = Client.mask(
            encoded,
            plan.bits,
            shared.selfSeed,
            shared.keys,
            context,
            roster.root.array,
            maskedFor,
            roster.index.toInt(),
            shared.peers.filter { it.index in sharers },
        )
        val vector = Bytes(Modular.pack(masked, plan.bits))
        val statement = if (plan.consistency == Consistency.QUORUM) {
            Bytes(environment.sign(Client.statement(context, roster.root.array, roster.index.toInt(), maskedFor)))
        } else {
            Bytes.EMPTY
        }
        val message = MaskedInput(
            plan.rid,
            BlobRef(Bytes(Suite.digest(vector.array)), vector.size.toLong()),
            if (vector.size <= Limits.INLINE_UPDATE_MAX_BYTES) vector else Bytes.EMPTY,
            statement,
        )
        // The update has served: only its masked form stays in the state.
        val without = State.Holding(withUpdate(shared, null), holding.sharers, holding.shares)
        return Step(State.Reported(without, vector, message, null), listOf(Effect.Spend(plan), Effect.Send(message)))
    }

    private fun receipt(state: State, receipt: Receipt): Step {
        if (state !is State.Reported || receipt.sha256 != state.message.vector.sha256 || state.receipt != null) {
            return Step(state)
        }
        return when (receipt.status) {
            ReceiptStatus.ACCEPTED, ReceiptStatus.DUPLICATE ->
                Step(State.Reported(state.holding, state.vector, state.message, receipt.status))
            ReceiptStatus.LATE ->
                Step(State.Ended(state.holding.shared.base.plan, false, null, "the masked input came too late"))
            ReceiptStatus.BAD_DIGEST -> Step(state, listOf(Effect.Send(state.message)))
        }
    }

    /** Where the threshold keeps the survivors one set they are answered, else endorsed by who may. */
    private fun survivors(state: State, survivors: Survivors): Step {
        if (answeredFor(state) != null) {
            requireSame(state, survivors)
            return repeat(state)
        }
        if (state !is State.Reported) throw RemoteProtocolError("survivors before this device's masked input")
        val shared = state.holding.shared
        val base = shared.base
        val roster = shared.roster
        val byQuorum = base.plan.consistency == Consistency.QUORUM
        if (byQuorum) {
            val committee =
                Checks.committeeOf(base.context, roster.root.array, roster.size.toInt(), roster.committee.toInt())
            if (roster.index.toInt() !in committee) {
                throw RemoteProtocolError("survivors to endorse, by a device that is not on the committee")
            }
        }
        val u3 = Checks.requireSoundSurvivors(base.plan, base.context, roster, state.holding.sharers, survivors)
        if (!byQuorum) return answer(state, survivors, u3)
        val digest = Checks.survivorsDigest(survivors)
        val signature = Bytes(environment.sign(Client.endorsement(base.context, digest.array)))
        val message = Endorsement(base.plan.rid, digest, signature)
        return Step(State.Endorsed(state, survivors, message), listOf(Effect.Send(message)))
    }

    private fun quorum(state: State, message: Quorum, now: Double): Step {
        val survivors = Survivors(message.rid, message.root, message.sharers, message.survivors)
        if (answeredFor(state) != null) requireSame(state, survivors)
        if (state is State.Answered) return repeat(state)
        val reported = (if (state is State.Endorsed) state.reported else state) as? State.Reported
            ?: throw RemoteProtocolError("a quorum before this device's masked input")
        val shared = reported.holding.shared
        val base = shared.base
        if (base.plan.consistency != Consistency.QUORUM) {
            throw RemoteProtocolError("a quorum in a round that needs none")
        }
        val u3 =
            Checks.requireSoundSurvivors(base.plan, base.context, shared.roster, reported.holding.sharers, survivors)
        Checks.requireQuorum(
            base.context, environment.deviceId, shared.roster, survivors, u3, message, verifier(now),
        )
        return answer(reported, survivors, u3)
    }

    /** The one set of survivors that this device endorsed or answered, or null. */
    private fun answeredFor(state: State): Survivors? = when (state) {
        is State.Endorsed -> state.survivors
        is State.Answered -> state.survivors
        else -> null
    }

    private fun requireSame(state: State, survivors: Survivors) {
        if (survivors != answeredFor(state)) {
            throw RemoteProtocolError(
                "a second, different set of survivors: an attempt to learn both secrets of one device",
            )
        }
    }

    private fun answer(state: State.Reported, survivors: Survivors, u3: Set<Int>): Step {
        val holding = state.holding
        val indices = holding.shares.keys.sorted()
        // Of a survivor the self seed's share, of the gone the mask key's: never both of one device.
        val shares = indices.map { index ->
            val held = holding.shares.getValue(index)
            if (index in u3) held.ofSeed else held.ofKey
        }
        val message = UnmaskingShares(
            holding.shared.base.plan.rid,
            Checks.survivorsDigest(survivors),
            indices.map { it.toLong() },
            joined(shares),
        )
        return Step(State.Answered(state, survivors, message), listOf(Effect.Send(message)))
    }

    /** A stage's message came again: the coordinator may lack ours, so it gets the same bytes once more. */
    private fun repeat(state: State): Step = Step(state, listOfNotNull(pending(state)?.let { Effect.Send(it) }))

    private fun joined(parts: List<ByteArray>): Bytes {
        val all = ByteBuffer.allocate(parts.sumOf { it.size })
        for (part in parts) all.put(part)
        return Bytes(all.array())
    }

    private fun words(reason: AbandonReason): String = reason.name.lowercase(Locale.ROOT)

    public companion object {
        /** The round that a state is in, or null. */
        public fun baseOf(state: State): Base? = when (state) {
            State.Waiting, is State.Ended -> null
            is State.Preparing -> state.base
            is State.Advertised -> state.base
            is State.Shared -> state.base
            is State.Holding -> state.shared.base
            is State.Reported -> state.holding.shared.base
            is State.Endorsed -> state.reported.holding.shared.base
            is State.Answered -> state.reported.holding.shared.base
        }

        /** The id of the round that a state is in, or null. */
        public fun roundId(state: State): Bytes? = baseOf(state)?.plan?.rid

        /**
         * What the coordinator may not have yet: the message to repeat until the session moves on.
         *
         * Once the masked input is receipted, only its digest is repeated: it asks for the survivors, should they have
         * been lost on their way.
         */
        public fun pending(state: State): ToCoordinator? = when (state) {
            is State.Advertised -> state.message
            is State.Shared -> state.message
            is State.Reported -> if (state.receipt == null) state.message else state.message.copy(inline = Bytes.EMPTY)
            is State.Endorsed -> state.message
            is State.Answered -> state.message
            State.Waiting, is State.Preparing, is State.Holding, is State.Ended -> null
        }

        /** The packed masked vector and its digest, while the coordinator may pull it. */
        public fun maskedVector(state: State): Pair<Bytes, Bytes>? = when (state) {
            is State.Reported -> state.message.vector.sha256 to state.vector
            is State.Endorsed -> maskedVector(state.reported)
            is State.Answered -> maskedVector(state.reported)
            else -> null
        }

        /** The effects to carry out again after a restart: what a replayed journal leaves undone. */
        public fun resume(state: State): List<Effect> = when {
            state is State.Preparing -> listOf(Effect.Fetch(state.base.plan.bundle, state.base.plan.checkpoint))
            state is State.Advertised && state.update == null ->
                listOf(Effect.Train(state.base.plan, state.seed), Effect.Send(state.message))
            state is State.Shared && state.update == null ->
                listOf(Effect.Train(state.base.plan, state.seed), Effect.Send(state.message))
            state is State.Holding -> listOf(Effect.Train(state.shared.base.plan, state.shared.seed))
            else -> listOfNotNull(pending(state)?.let { Effect.Send(it) })
        }
    }
}
