package edge.protocol

import edge.Bytes
import edge.IdentityError
import edge.privacy.Mechanism
import edge.secagg.Client
import edge.secagg.Coordinator
import edge.secagg.Modular
import edge.secagg.Suite
import java.nio.ByteBuffer
import java.nio.ByteOrder

/** Five sessions and an honest coordinator that a test can make lie. Certificates and signatures are stand-ins. */
internal class Cohort(private val consistency: Consistency = Consistency.THRESHOLD, private val size: Int = 5) {
    val plan = Plan(
        rid = Bytes(ByteArray(16) { 9 }), suite = 1, task = "task", roundNumber = 1, modelVersion = 1,
        bundle = BlobRef(Bytes(ByteArray(32)), 1), checkpoint = BlobRef(Bytes(ByteArray(32)), 16), goalCount = 5,
        minReports = 3, corruptShare = 0.05, dropoutShare = 0.3, consistency = consistency, dimension = 4, bits = 20,
        mechanism = Mechanism.NONE, localNoise = false, clipNorm = 1.0, clipBit = 0.0, scale = 100.0, normBound = 110.0,
        deviceVariance = 0, noiseMultiplier = 0.0, epsilon = 0.0, delta = 1e-5, participationCap = 10, epochs = 1,
        batchSize = 8, maxSteps = 10, learningRate = 0.1, expiresAfterS = 100.0, proximal = 0.0,
    )
    val policy = DevicePolicy(minReports = 3, epsilonAtMost = Double.POSITIVE_INFINITY)
    private val sessions = (0 until size).map { u ->
        Session(Environment(id(u), certificate(u), { sign(u, it) }, ::verify, policy))
    }
    val states = MutableList<State>(size) { State.Waiting }
    val said = List(size) { ArrayList<ToCoordinator>() }
    private var steps = 0

    fun id(u: Int) = "device-$u"

    fun certificate(u: Int) = Bytes("certificate of device-$u".toByteArray())

    fun sign(u: Int, message: ByteArray): ByteArray =
        Suite.digest(byteArrayOf(u.toByte()), message).let { it + it }

    private fun verify(certificate: Bytes, message: ByteArray, signature: ByteArray, now: Double): String {
        val u = (0 until size).find { certificate(it) == certificate } ?: throw IdentityError("a stranger at $now")
        if (!signature.contentEquals(sign(u, message))) throw IdentityError("not ${id(u)}'s signature")
        return id(u)
    }

    /** Lets something happen to a device; what it says is kept. */
    fun step(u: Int, event: Event, now: Double = 1.0): State {
        val entropy = Suite.digest("entropy $u ${steps++}".toByteArray())
        val step = sessions[u].step(states[u], event, now, entropy)
        step.effects.forEach { if (it is Effect.Send) said[u].add(it.message) }
        states[u] = step.state
        return step.state
    }

    fun tell(u: Int, message: RoundMessage): State = step(u, Event.Received(message))

    inline fun <reified T> last(u: Int): T = said[u].last() as T

    fun join(offered: Plan = plan) {
        for (u in 0 until size) {
            step(u, Event.PlanReceived(offered, Bytes(Suite.digest(byteArrayOf(1))), Spending()))
            step(u, Event.Ready)
            step(u, Event.Trained(update(u)))
        }
    }

    fun update(u: Int): Bytes {
        val data = ByteBuffer.allocate(16).order(ByteOrder.LITTLE_ENDIAN)
        for (i in 0 until 4) data.putFloat(if (i == u % 4) 0.5f else 0f)
        return Bytes(data.array())
    }

    private val keys by lazy { (0 until size).map { u -> said[u].first { it is AdvertiseKeys } as AdvertiseKeys } }

    /** The roster for a device; [change] what stands in it of each, before the tree is made over them. */
    fun roster(u: Int, change: (Neighbour) -> Neighbour = { it }): Roster {
        val all = keys.mapIndexed { v, key ->
            change(Neighbour(v.toLong(), certificate(v), key.channelPublic, key.maskPublic, key.signature, Bytes.EMPTY))
        }
        val leaves = all.map {
            Client.rosterLeaf(it.index.toInt(), it.certificate, it.channelPublic, it.maskPublic, it.signature)
        }
        val proofs = Coordinator.proofs(leaves).map { Bytes(it.fold(ByteArray(0), ByteArray::plus)) }
        val byQuorum = consistency == Consistency.QUORUM
        return Roster(
            plan.rid, Bytes(Coordinator.root(leaves)), size.toLong(), u.toLong(), size - 1L, if (byQuorum) 2 else 3,
            proofs[u], (all.indices - u).map { all[it].copy(proof = proofs[it]) }, if (byQuorum) 5 else 0,
            if (byQuorum) 4 else 0,
        )
    }

    private fun <T> Iterable<T>.minus(index: Int): List<T> = filterIndexed { i, _ -> i != index }

    fun share() = (0 until size).forEach { tell(it, roster(it)) }

    /** The boxes for a device, of those who shared. */
    fun delivery(u: Int, sharers: Set<Int> = (0 until size).toSet()): ShareDelivery {
        val senders = (sharers - u).sorted()
        val boxes = senders.map { v ->
            val sent = said[v].first { it is ShareKeys } as ShareKeys
            val at = Client.BOX_BYTES * sent.indices.indexOf(u.toLong())
            sent.boxes.array.copyOfRange(at, at + Client.BOX_BYTES)
        }
        return ShareDelivery(
            plan.rid, bitmap(sharers), senders.map { it.toLong() }, Bytes(boxes.fold(ByteArray(0), ByteArray::plus)),
        )
    }

    fun deliver() = (0 until size).forEach { tell(it, delivery(it)) }

    fun survivors(alive: Set<Int> = (0 until size).toSet(), sharers: Set<Int> = (0 until size).toSet()) =
        Survivors(plan.rid, roster(0).root, bitmap(sharers), bitmap(alive))

    /** What a quorum says to a device, of all who endorsed and masked. */
    fun quorum(u: Int, survivors: Survivors): Quorum {
        val members = (roster(0).neighbours + roster(1).neighbours.first()).sortedBy { it.index }
        val signed = said.map { all -> all.firstOrNull { it is Endorsement } as Endorsement? }
        val alive = requireNotNull(members(survivors.survivors, size)).filter { it != u }.sorted()
        return Quorum(
            survivors.rid, survivors.root, survivors.sharers, survivors.survivors, members.take(4),
            joined((0 until 4).map { requireNotNull(signed[it]).signature }), alive.map { it.toLong() },
            joined(alive.map { v -> (said[v].first { it is MaskedInput } as MaskedInput).statement }),
        )
    }

    /** The sum of the masked vectors of [alive], less their masks. */
    fun unmasked(alive: Set<Int>): List<Long> {
        val root = roster(0).root.array
        val context = requireNotNull(Session.baseOf(states[alive.first()])).context
        val masked = alive.map { v ->
            Coordinator.unpack((said[v].first { it is MaskedInput } as MaskedInput).inline.array, 4, plan.bits)
        }
        val answers = alive.associateWith { v -> said[v].first { it is UnmaskingShares } as UnmaskingShares }
        fun shares(owner: Int) = (alive - owner).associate { v ->
            val at = 32 * answers.getValue(v).indices.indexOf(owner.toLong())
            v + 1 to answers.getValue(v).shares.array.copyOfRange(at, at + 32)
        }
        val threshold = roster(0).threshold.toInt()
        val seeds = alive.map { u ->
            val commitment = (said[u].first { it is ShareKeys } as ShareKeys).commitment.array
            Coordinator.rebuild(shares(u), threshold) { Client.commitment(context, u, it).contentEquals(commitment) }
        }
        val peers = keys.mapIndexed { v, key -> edge.secagg.Peer(v, key.channelPublic, key.maskPublic) }
        val gone = ((0 until size) - alive).map { u ->
            peers[u] to Coordinator.rebuild(shares(u), threshold) {
                edge.secagg.KeyPair.fromPrivate(it).public == peers[u].maskPublic
            }
        }
        val total = IntArray(4) { at -> masked.sumOf { it[at] } }
        val sharersDigest = Checks.sharersDigest(bitmap((0 until size).toSet())).array
        val sum = Coordinator.unmask(
            total, plan.bits, seeds, gone, { alive.map { v -> peers[v] } }, context, root, sharersDigest,
        )
        return Coordinator.centre(Modular.reduce(sum, plan.bits), plan.bits).toList()
    }

    fun bitmap(indices: Set<Int>): Bytes {
        val bits = ByteArray((size + 7) / 8)
        for (i in indices) bits[i / 8] = (bits[i / 8].toInt() or (1 shl i % 8)).toByte()
        return Bytes(bits)
    }

    private fun joined(parts: List<Bytes>) = Bytes(parts.fold(ByteArray(0)) { all, part -> all + part.array })
}
