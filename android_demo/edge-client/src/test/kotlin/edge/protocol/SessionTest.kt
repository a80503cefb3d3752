package edge.protocol

import edge.Bytes
import edge.RemoteProtocolError
import edge.privacy.Mechanism
import org.junit.jupiter.api.Assertions.assertEquals
import org.junit.jupiter.api.Assertions.assertNull
import org.junit.jupiter.api.Assertions.assertSame
import org.junit.jupiter.api.Assertions.assertThrows
import org.junit.jupiter.api.Assertions.assertTrue
import org.junit.jupiter.api.Test
import org.junit.jupiter.api.assertAll

/** A device's stages: whole rounds, what a lying coordinator tries, and what ends a round. */
class SessionTest {
    private fun refused(action: () -> Unit) {
        assertThrows(RemoteProtocolError::class.java, action)
    }

    private fun assertDeclines(reason: DeclineReason, cohort: Cohort, message: RoundMessage) {
        val before = cohort.states[0]
        val after = cohort.tell(0, message)
        assertTrue(after is State.Ended && after.declined == reason) { "$reason expected, found $after" }
        assertEquals(reason, cohort.last<Decline>(0).reason)
        cohort.states[0] = before
    }

    @Test
    fun `a round gives the sum of the survivors`() {
        val cohort = Cohort().apply { join(); share(); deliver() }
        for (u in listOf(0, 1, 3, 4)) {
            cohort.tell(u, cohort.survivors(setOf(0, 1, 3, 4)))
            assertTrue(cohort.states[u] is State.Answered)
        }
        val sum = cohort.unmasked(setOf(0, 1, 3, 4))
        // The rotation keeps the length: what was rounded is within its bound.
        assertTrue(sum.sumOf { it * it } in 1L..4 * 4 * 110L * 110L) { "$sum" }
        cohort.tell(0, Outcome(cohort.plan.rid, true, AbandonReason.NONE, 4))
        assertTrue((cohort.states[0] as State.Ended).committed)
    }

    @Test
    fun `a quorum is endorsed once and answered once`() {
        val cohort = Cohort(Consistency.QUORUM).apply { join(); share(); deliver() }
        val all = cohort.survivors()
        for (u in 0 until 5) assertTrue(cohort.tell(u, all) is State.Endorsed)
        refused { cohort.tell(0, cohort.survivors(setOf(0, 1, 2, 3))) }
        val good = cohort.quorum(0, all)
        fun Bytes.broken() = Bytes(array.copyOf().also { it[0] = (it[0] + 1).toByte() })
        val wrong = listOf(
            good.copy(members = good.members.drop(1), endorsements = Bytes(good.endorsements.array.copyOf(3 * 64))),
            good.copy(endorsements = good.endorsements.broken()),
            good.copy(statements = good.statements.broken()),
            good.copy(statements = Bytes.EMPTY, indices = emptyList()),
            good.copy(members = List(4) { good.members[1] }),
            good.copy(members = good.members.map { it.copy(proof = Bytes.EMPTY) }),
        )
        assertAll(wrong.map { quorum -> { assertDeclines(DeclineReason.SURVIVORS_UNSOUND, cohort, quorum) } })
        assertTrue(cohort.tell(0, good) is State.Answered)
        for (u in 1 until 5) cohort.tell(u, cohort.quorum(u, all))
        assertEquals(4, cohort.unmasked((0 until 5).toSet()).size)
    }

    @Test
    fun `a replay says the same, byte for byte`() {
        val runs = List(2) { Cohort().apply { join(); share(); deliver() }.apply { tell(0, survivors()) } }
        assertEquals(runs[0].said, runs[1].said)
        assertEquals(4, runs[0].said[0].size)
    }

    @Test
    fun `a stage's message that comes again is answered with the same`() {
        val cohort = Cohort().apply { join(); share() }
        val count = cohort.said[0].size
        val state = cohort.states[0]
        assertSame(state, cohort.tell(0, cohort.roster(0)))
        assertEquals(count + 1, cohort.said[0].size)
        assertEquals(cohort.said[0][count - 1], cohort.said[0][count])
    }

    @Test
    fun `rosters that lie are left`() {
        val cohort = Cohort().apply { join() }
        val good = cohort.roster(0)
        val zero = Bytes(ByteArray(32))
        val wrong = listOf(
            good.copy(index = 1),
            good.copy(index = 9),
            good.copy(root = zero),
            good.copy(size = 6),
            good.copy(size = 2),
            good.copy(threshold = 2),
            good.copy(threshold = 5),
            good.copy(degree = 0xffffffffL),
            good.copy(degree = 2),
            good.copy(proof = Bytes.EMPTY),
            good.copy(neighbours = good.neighbours.reversed()),
            good.copy(neighbours = good.neighbours.drop(1)),
            good.copy(neighbours = good.neighbours.map { it.copy(proof = zero) }),
            // In the tree, but not what the devices signed, or who they are.
            cohort.roster(0) { if (it.index == 2L) it.copy(maskPublic = it.channelPublic) else it },
            cohort.roster(0) { if (it.index == 2L) it.copy(certificate = cohort.certificate(7)) else it },
            // One device twice.
            cohort.roster(0) { if (it.index == 2L) cohort.roster(0).neighbours[0].copy(index = 2) else it },
        )
        assertAll(wrong.map { roster -> { assertDeclines(DeclineReason.ROSTER_UNSOUND, cohort, roster) } })
        assertTrue(cohort.tell(0, good) is State.Shared)
    }

    @Test
    fun `a key that no secret can be agreed on with is found at once`() {
        val cohort = Cohort().apply { join() }
        val zero = Bytes(ByteArray(32))
        val context = requireNotNull(Session.baseOf(cohort.states[0])).context
        val signed = edge.secagg.Client.advertisement(context, zero, zero)
        val roster = cohort.roster(0) {
            val signature = Bytes(cohort.sign(3, signed))
            if (it.index == 3L) it.copy(channelPublic = zero, maskPublic = zero, signature = signature) else it
        }
        assertDeclines(DeclineReason.ROSTER_UNSOUND, cohort, roster)
    }

    @Test
    fun `deliveries that lie are left, and some bad boxes are not`() {
        val cohort = Cohort().apply { join(); share() }
        val good = cohort.delivery(0)
        fun spoiled(count: Int) = Bytes(good.boxes.array.copyOf().also { boxes -> repeat(count) { boxes[80 * it]++ } })
        val wrong = listOf(
            good.copy(sharers = Bytes(byteArrayOf(1, 0))),
            good.copy(sharers = Bytes(byteArrayOf(-1))),
            good.copy(sharers = cohort.bitmap(setOf(1, 2, 3, 4))),
            cohort.delivery(0, setOf(0, 1)),
            cohort.delivery(0, setOf(0, 1, 2)),
            good.copy(indices = good.indices.reversed()),
            good.copy(boxes = Bytes(good.boxes.array.copyOf(240))),
            good.copy(boxes = spoiled(2)),
        )
        assertAll(wrong.map { delivery -> { assertDeclines(DeclineReason.SURVIVORS_UNSOUND, cohort, delivery) } })
        assertTrue(cohort.tell(0, good.copy(boxes = spoiled(1))) is State.Reported)
    }

    @Test
    fun `survivors that lie are left, and a second set is never answered`() {
        val cohort = Cohort().apply { join(); share() }
        refused { cohort.tell(0, cohort.survivors()) }
        cohort.deliver()
        val good = cohort.survivors()
        val wrong = listOf(
            good.copy(root = Bytes(ByteArray(32))),
            good.copy(sharers = cohort.bitmap(setOf(0, 1, 2, 3))),
            cohort.survivors(setOf(0, 1)),
            cohort.survivors(setOf(1, 2, 3, 4)),
            good.copy(survivors = Bytes(byteArrayOf(-1))),
            good.copy(survivors = Bytes.EMPTY),
        )
        assertAll(wrong.map { survivors -> { assertDeclines(DeclineReason.SURVIVORS_UNSOUND, cohort, survivors) } })
        refused { cohort.tell(0, Quorum(good.rid, good.root, good.sharers, good.survivors, emptyList(), Bytes.EMPTY, emptyList(), Bytes.EMPTY)) }
        cohort.tell(0, good)
        val answer = cohort.last<UnmaskingShares>(0)
        refused { cohort.tell(0, cohort.survivors(setOf(0, 1, 2, 3))) }
        cohort.tell(0, good)
        assertEquals(answer, cohort.last<UnmaskingShares>(0))
    }

    @Test
    fun `plans weaker than the policy are declined by name`() {
        val base = Cohort().plan.copy(
            mechanism = Mechanism.SKELLAM, deviceVariance = 2_000, minReports = 20, goalCount = 40, corruptShare = 0.05,
        )
        val policy = DevicePolicy(tasks = setOf("task"))
        fun reason(plan: Plan, floors: DevicePolicy = policy, spent: Spending = Spending()) =
            Policy.objection(plan, floors, spent)?.reason
        assertNull(reason(base, policy.copy(epsilonAtMost = 50.0)))
        val one = Policy.releaseOf(base)
        val found = mapOf(
            DeclineReason.SUITE_UNSUPPORTED to reason(base.copy(suite = 2)),
            DeclineReason.TASK_NOT_ALLOWED to reason(base.copy(task = "other")),
            DeclineReason.COHORT_TOO_SMALL to reason(base.copy(minReports = 19)),
            DeclineReason.NOISE_TOO_SMALL to reason(base.copy(mechanism = Mechanism.NONE)),
            DeclineReason.EPSILON_TOO_LARGE to reason(base.copy(deviceVariance = 1)),
            DeclineReason.PARTICIPATION_CAP to reason(base, spent = Spending(10, listOf(one to 10L))),
        )
        for ((expected, was) in found) assertEquals(expected, was)
        assertEquals(DeclineReason.COHORT_TOO_SMALL, reason(base.copy(corruptShare = 0.0)))
        val lifetime = policy.copy(allParticipationsAtMost = 3)
        assertEquals(DeclineReason.PARTICIPATION_CAP, reason(base, lifetime, Spending(0, listOf(one to 3L))))
        // What other tasks cost counts as well.
        val before = Spending(0, listOf(one.copy(deviceVariance = 1) to 5L))
        assertEquals(DeclineReason.EPSILON_TOO_LARGE, reason(base, policy.copy(epsilonAtMost = 50.0), before))
        val malformed = listOf(
            base.copy(learningRate = Double.POSITIVE_INFINITY), base.copy(expiresAfterS = 0.0), base.copy(proximal = -1.0),
            base.copy(epochs = 0), base.copy(batchSize = 0), base.copy(maxSteps = 0), base.copy(participationCap = 0),
            base.copy(goalCount = 19), base.copy(goalCount = 65_536), base.copy(delta = 0.0), base.copy(delta = 1.0),
            base.copy(dimension = 0), base.copy(dimension = 0xffffffffL), base.copy(corruptShare = 0.5),
            base.copy(dropoutShare = -0.1), base.copy(bits = 33), base.copy(normBound = 1.0), base.copy(deviceVariance = -1),
        )
        for (plan in malformed) assertEquals(DeclineReason.PLAN_MALFORMED, reason(plan))
    }

    @Test
    fun `a round ends by expiry, by a later one, by its outcome and by a late input`() {
        fun ended(change: Cohort.() -> State): String =
            (Cohort().apply { join(); share(); deliver() }.change() as State.Ended).detail
        assertEquals("the round expired", ended { step(0, Event.Tick, now = 101.0) })
        assertEquals("a later round was announced", ended { step(0, Event.Superseded) })
        assertEquals("abandoned: too_few_reports", ended { tell(0, Outcome(plan.rid, false, AbandonReason.TOO_FEW_REPORTS, 0)) })
        val late = ended { tell(0, Receipt(plan.rid, last<MaskedInput>(0).vector.sha256, ReceiptStatus.LATE)) }
        assertEquals("the masked input came too late", late)
    }

    @Test
    fun `a receipted input is repeated without its vector`() {
        val cohort = Cohort().apply { join(); share(); deliver() }
        val input = cohort.last<MaskedInput>(0)
        assertEquals(input, Session.pending(cohort.states[0]))
        cohort.tell(0, Receipt(cohort.plan.rid, Bytes(ByteArray(32)), ReceiptStatus.ACCEPTED))
        assertEquals(input, Session.pending(cohort.states[0]))
        cohort.tell(0, Receipt(cohort.plan.rid, input.vector.sha256, ReceiptStatus.ACCEPTED))
        assertEquals(input.copy(inline = Bytes.EMPTY), Session.pending(cohort.states[0]))
    }

    @Test
    fun `updates that are no updates end the round`() {
        for (update in listOf(Bytes(ByteArray(12)), Bytes(ByteArray(16) { -1 }))) {
            val cohort = Cohort()
            cohort.step(0, Event.PlanReceived(cohort.plan, Bytes(ByteArray(32)), Spending()))
            cohort.step(0, Event.Ready)
            for (u in 1 until 5) {
                cohort.step(u, Event.PlanReceived(cohort.plan, Bytes(ByteArray(32)), Spending()))
                cohort.step(u, Event.Ready)
            }
            cohort.share()
            cohort.step(0, Event.Trained(update))
            assertEquals(DeclineReason.TRAINING_FAILED, (cohort.tell(0, cohort.delivery(0)) as State.Ended).declined)
        }
    }

    @Test
    fun `a message of another round, or a plan inside one, is refused`() {
        val cohort = Cohort().apply { join() }
        refused { cohort.tell(0, cohort.roster(0).copy(rid = NO_ROUND)) }
        refused { cohort.step(0, Event.PlanReceived(cohort.plan.copy(rid = NO_ROUND), Bytes(ByteArray(32)), Spending())) }
    }
}
