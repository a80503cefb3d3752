package edge.protocol

import edge.Bytes
import edge.IdentityError
import edge.RemoteProtocolError
import edge.secagg.Client
import edge.secagg.Graph
import edge.secagg.Merkle
import edge.secagg.RoundKeys
import edge.secagg.Suite
import edge.secagg.Quorum as QuorumRules

/**
 * (certificate DER, message, signature) -> the device id that the registrar vouches for; raises IdentityError where the
 * certificate or the signature is not good.
 */
public typealias VerifyPeer = (certificate: Bytes, message: ByteArray, signature: ByteArray) -> String

/** A message that this device does not go on with; never crosses [Session.step]. */
internal class Unsound(val reason: DeclineReason, val detail: String) : Exception(detail)

/**
 * What a device checks of the coordinator's messages before it acts on them. Each failure is a named reason to leave.
 *
 * Stage by stage as in PROTOCOL.md 9.3. Pure: signatures are verified by the caller's `verifyPeer`.
 */
public object Checks {
    /** What draws the neighbours. */
    public fun graphSeed(context: ByteArray, root: ByteArray): ByteArray =
        Suite.digest("graph".toByteArray(), context, root)

    /** Who may endorse the survivors, by index. */
    public fun committeeOf(context: ByteArray, root: ByteArray, size: Int, committee: Int): Set<Int> =
        QuorumRules.members(size, committee, Suite.digest("committee".toByteArray(), context, root))

    /** H(U2), which enters every pairwise mask. */
    public fun sharersDigest(sharers: Bytes): Bytes =
        Bytes(Suite.digest("edge-sdk/U2\u0000".toByteArray(), sharers.array))

    /** What an endorsement and an answer name, so that they are of this set and no other. */
    public fun survivorsDigest(survivors: Survivors): Bytes = Bytes(
        Suite.digest(
            "edge-sdk/U3\u0000".toByteArray(),
            survivors.rid.array,
            survivors.root.array,
            survivors.sharers.array,
            survivors.survivors.array,
        ),
    )

    // ---- stage 2

    /** Checks a roster against the plan, this device's own place in it, and all that proves its neighbours. */
    internal fun requireSoundRoster(
        plan: Plan,
        context: ByteArray,
        deviceId: String,
        certificate: Bytes,
        message: AdvertiseKeys,
        keys: RoundKeys,
        roster: Roster,
        verifyPeer: VerifyPeer,
    ) {
        requireSoundParameters(plan, roster)
        val own = Neighbour(
            roster.index, certificate, message.channelPublic, message.maskPublic, message.signature, roster.proof,
        )
        if (!isInRoster(roster, own)) unsoundRoster("this device is not at its index in the roster")
        val seed = graphSeed(context, roster.root.array)
        val expected = Graph.neighbours(roster.size.toInt(), roster.degree.toInt(), roster.index.toInt(), seed)
        if (roster.neighbours.map { it.index } != expected.map { it.toLong() }) {
            unsoundRoster("the neighbours are not those of the graph")
        }
        val standing = mutableListOf(roster.index to deviceId)
        for (neighbour in roster.neighbours) {
            if (!isInRoster(roster, neighbour)) unsoundRoster("neighbour ${neighbour.index} is not in the roster")
            val signed = Client.advertisement(context, neighbour.channelPublic, neighbour.maskPublic)
            try {
                standing += neighbour.index to verifyPeer(neighbour.certificate, signed, neighbour.signature.array)
            } catch (error: IdentityError) {
                unsoundRoster("neighbour ${neighbour.index}: ${error.message}")
            }
        }
        if (!isInOrder(standing)) unsoundRoster("the roster is not in the order of the devices' ids")
        // Agree with every neighbour on both secrets now (they are kept), so that no bad key can stop a later stage.
        for (neighbour in roster.neighbours) {
            try {
                keys.channel.agree(neighbour.channelPublic)
                keys.mask.agree(neighbour.maskPublic)
            } catch (error: RemoteProtocolError) {
                unsoundRoster("neighbour ${neighbour.index}: ${error.message}")
            }
        }
    }

    private fun requireSoundParameters(plan: Plan, roster: Roster) {
        if (!(plan.minReports <= roster.size && roster.size <= plan.goalCount) || roster.index >= roster.size) {
            unsoundRoster("a roster of ${roster.size} for ${plan.minReports} reports of at most ${plan.goalCount} devices")
        }
        if (roster.degree > Limits.NEIGHBOURS_MAX) {
            unsoundRoster("${roster.degree} neighbours are more than a message holds")
        }
        val size = roster.size.toInt()
        val byQuorum = plan.consistency == Consistency.QUORUM
        // More neighbours than any, or shares than neighbours, are unsound as well; cut so that they fit an Int.
        val threshold = minOf(roster.threshold, Int.MAX_VALUE.toLong()).toInt()
        if (!Graph.isSound(size, roster.degree.toInt(), threshold, plan.corruptShare, !byQuorum)) {
            unsoundRoster("degree ${roster.degree} and threshold ${roster.threshold} do not protect $size devices")
        }
        if (byQuorum && !(roster.committee <= size && roster.quorum <= size &&
                QuorumRules.isSound(size, roster.committee.toInt(), roster.quorum.toInt(), plan.corruptShare))
        ) {
            unsoundRoster(
                "two sets can each have ${roster.quorum} endorsements of a committee of ${roster.committee}",
            )
        }
    }

    private fun isInRoster(roster: Roster, other: Neighbour): Boolean {
        if (other.index >= roster.size) return false
        val leaf = Client.rosterLeaf(
            other.index.toInt(), other.certificate, other.channelPublic, other.maskPublic, other.signature,
        )
        val proof = (0 until other.proof.size step Suite.DIGEST_BYTES).map { at ->
            other.proof.array.copyOfRange(at, minOf(at + Suite.DIGEST_BYTES, other.proof.size))
        }
        return Merkle.verify(roster.root.array, leaf, other.index.toInt(), roster.size.toInt(), proof)
    }

    /** Ids ascend with the index: nobody stands there twice, and the coordinator has no order to choose. */
    private fun isInOrder(standing: List<Pair<Long, String>>): Boolean {
        val names = standing.toSet().sortedWith(compareBy({ it.first }, { it.second })).map { it.second }
        return names.zipWithNext().all { (before, after) -> before < after }
    }

    private fun unsoundRoster(detail: String): Nothing = throw Unsound(DeclineReason.ROSTER_UNSOUND, detail)

    // ---- stage 4, down

    /** Checks U2 and that the boxes are those of the neighbours in it; these. */
    internal fun requireSoundDelivery(plan: Plan, roster: Roster, delivery: ShareDelivery): List<Int> {
        val sharers = members(delivery.sharers, roster.size.toInt())
        if (sharers == null || roster.index.toInt() !in sharers || sharers.size < plan.minReports) {
            unsoundSurvivors("the set of those who shared is not acceptable")
        }
        val senders = roster.neighbours.map { it.index.toInt() }.filter { it in sharers }
        if (senders.size < roster.threshold) unsoundSurvivors("only ${senders.size} neighbours shared their keys")
        if (delivery.indices != senders.map { it.toLong() } || delivery.boxes.size != Client.BOX_BYTES * senders.size) {
            unsoundSurvivors("the boxes are not those of the neighbours who shared")
        }
        return senders
    }

    // ---- stage 5

    /** Checks U3 against what this device masked for; U3. */
    internal fun requireSoundSurvivors(
        plan: Plan,
        context: ByteArray,
        roster: Roster,
        sharers: Bytes,
        survivors: Survivors,
    ): Set<Int> {
        val size = roster.size.toInt()
        val u2 = members(survivors.sharers, size)
        val u3 = members(survivors.survivors, size)
        if (survivors.root != roster.root || survivors.sharers != sharers || u2 == null) {
            unsoundSurvivors("not the roster and the sharers that were masked for")
        }
        if (u3 == null || !u2.containsAll(u3) || roster.index.toInt() !in u3) {
            unsoundSurvivors("the survivors are not among those who shared")
        }
        if (u3.size < plan.minReports) unsoundSurvivors("${u3.size} survivors; the plan promised ${plan.minReports}")
        val live = roster.neighbours.count { it.index.toInt() in u3 }
        if (live < roster.threshold) unsoundSurvivors("only $live neighbours survive")
        if (plan.consistency == Consistency.QUORUM) {
            val seed = graphSeed(context, roster.root.array)
            if (!QuorumRules.holdsTogether(size, roster.degree.toInt(), u3, plan.corruptShare, seed)) {
                unsoundSurvivors("the survivors do not hold the graph together")
            }
        }
        return u3
    }

    /** Checks that a quorum of the committee endorsed these survivors, and that all neighbours in U3 masked for this U2. */
    internal fun requireQuorum(
        context: ByteArray,
        deviceId: String,
        roster: Roster,
        survivors: Survivors,
        u3: Set<Int>,
        message: Quorum,
        verifyPeer: VerifyPeer,
    ) {
        val root = roster.root.array
        val committee = committeeOf(context, root, roster.size.toInt(), roster.committee.toInt())
        val indices = message.members.map { it.index }
        if (indices.toSet().size < roster.quorum || !indices.all { it < roster.size && it.toInt() in committee }) {
            unsoundSurvivors("no quorum of ${roster.quorum} of the committee")
        }
        val alive = roster.neighbours.filter { it.index.toInt() in u3 }
        if (message.indices != alive.map { it.index } ||
            message.endorsements.size != SIGNATURE_BYTES * indices.size ||
            message.statements.size != SIGNATURE_BYTES * alive.size
        ) {
            unsoundSurvivors("endorsements or statements are missing")
        }
        val standing = mutableListOf(roster.index to deviceId)
        val endorsed = Client.endorsement(context, survivorsDigest(survivors).array)
        val maskedFor = sharersDigest(survivors.sharers).array
        try {
            message.members.forEachIndexed { position, member ->
                if (!isInRoster(roster, member)) unsoundSurvivors("member ${member.index} is not in the roster")
                val signature = signature(message.endorsements, position)
                standing += member.index to verifyPeer(member.certificate, endorsed, signature)
            }
            alive.forEachIndexed { position, neighbour ->
                val stated = Client.statement(context, root, neighbour.index.toInt(), maskedFor)
                val signature = signature(message.statements, position)
                standing += neighbour.index to verifyPeer(neighbour.certificate, stated, signature)
            }
        } catch (error: IdentityError) {
            unsoundSurvivors("an endorsement or a statement is not good: ${error.message}")
        }
        if (!isInOrder(standing)) unsoundSurvivors("a device stands twice on the committee")
    }

    private const val SIGNATURE_BYTES = 64

    private fun signature(column: Bytes, position: Int): ByteArray =
        column.array.copyOfRange(SIGNATURE_BYTES * position, SIGNATURE_BYTES * (position + 1))

    private fun unsoundSurvivors(detail: String): Nothing = throw Unsound(DeclineReason.SURVIVORS_UNSOUND, detail)
}
