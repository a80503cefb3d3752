package edge.runtime

import edge.Deferred
import edge.IdentityError
import edge.LocalProtocolError
import edge.Refused
import edge.Training
import edge.privacy.Sampling
import edge.protocol.AbandonReason
import edge.protocol.AdvertiseKeys
import edge.protocol.Decline
import edge.protocol.DeclineReason
import edge.protocol.Outcome
import edge.protocol.Pull
import edge.protocol.Rejection
import edge.protocol.RejectionReason
import edge.protocol.State
import edge.protocol.TaskState
import edge.runtime.Desk.Companion.WINDOW_S
import edge.runtime.Desk.Companion.rid
import edge.runtime.Desk.Companion.tasks
import java.io.File
import org.junit.jupiter.api.AfterEach
import org.junit.jupiter.api.Assertions.assertEquals
import org.junit.jupiter.api.Assertions.assertFalse
import org.junit.jupiter.api.Assertions.assertSame
import org.junit.jupiter.api.Assertions.assertThrows
import org.junit.jupiter.api.Assertions.assertTrue
import org.junit.jupiter.api.Test
import org.junit.jupiter.api.io.TempDir

/** One device in several populations: one round at a time, each in its turn; what it refuses, and how it goes on. */
class AgentPopulationsTest {
    @TempDir
    lateinit var folder: File
    private val open = ArrayList<Desk>()

    private fun desk(budget: Budget = Budget(), consent: (DeviceStore) -> Consent? = { null }, free: Long? = null) =
        Desk(folder, budget = budget, consent = consent, freeMemory = { free }).also { open.add(it) }

    @AfterEach
    fun close() = open.forEach { it.close() }

    @Test
    fun `all populations are subscribed to, and it offers itself to one at a time`() {
        val desk = desk()
        assertEquals(listOf("first", "second"), desk.agent.subscriptions.take(2).map { it.substringAfterLast('/') })
        assertEquals(listOf("a"), tasks(desk.announce("first", "a", 1)))
        assertEquals(emptyList<String>(), tasks(desk.announce("second", "b", 2)))
        assertEquals(setOf("a"), tasks(desk.wait(WINDOW_S - 1)).toSet())
        // The first's selection is over, and it said nothing.
        assertEquals(setOf("b"), tasks(desk.wait(2.0)).toSet())
        assertEquals(setOf("a"), tasks(desk.wait(WINDOW_S + 1)).toSet())
    }

    @Test
    fun `a rejection frees it for the other at once`() {
        val desk = desk()
        desk.announce("first", "a", 1)
        desk.announce("second", "b", 2)
        assertEquals(listOf("b"), tasks(desk.tell(Rejection("a", RejectionReason.ROUND_FULL, 600.0, 0.0))))
    }

    @Test
    fun `while it is in a round it offers itself to nobody, and then to the other`() {
        val desk = desk()
        desk.announce("first", "a", 1)
        assertTrue(desk.serve(desk.tell(desk.plan("a", 1))).any { it is AdvertiseKeys })
        assertEquals(emptyList<String>(), tasks(desk.announce("second", "b", 2)))
        assertEquals(listOf("b"), tasks(desk.tell(Outcome(rid(1), false, AbandonReason.CANCELLED, 0))))
        assertTrue(desk.serve(desk.tell(desk.plan("b", 2))).any { it is AdvertiseKeys })
        assertEquals("second", desk.agent.takeJob()?.population)
        assertEquals(listOf(1, 1), desk.learners.values.map { it.checks })
    }

    @Test
    fun `a plan that comes late is declined, and the round under way goes on`() {
        val desk = desk()
        desk.announce("second", "b", 2)
        // It had offered itself there first, heard nothing for long, and joined the other meanwhile.
        assertEquals(setOf("a"), tasks(desk.announce("first", "a", 1) + desk.wait(WINDOW_S + 1)).toSet() - "b")
        assertTrue(desk.serve(desk.tell(desk.plan("a", 1))).any { it is AdvertiseKeys })
        val declined = desk.tell(desk.plan("b", 2)).single() as Decline
        assertEquals(rid(2) to DeclineReason.ROUND_ALREADY_JOINED, declined.rid to declined.reason)
        assertTrue(desk.agent.state is State.Advertised)
        assertEquals(listOf("second"), desk.events.filterIsInstance<Refused>().map { it.population })
        // When the round is over, it does not offer itself to the one that it declined.
        assertEquals(emptyList<String>(), tasks(desk.tell(Outcome(rid(1), false, AbandonReason.CANCELLED, 0))))
    }

    @Test
    fun `one population's coordinator says nothing in the other's round`() {
        val desk = desk()
        val rival = desk.rival()
        desk.announce("second", "b", 2, signer = rival)
        desk.announce("first", "a", 1)
        desk.tell(Rejection("b", RejectionReason.ROUND_FULL, 600.0, 0.0))
        assertEquals(emptyList<Any>(), desk.tell(desk.plan("a", 1), signer = rival))
        desk.tell(desk.plan("a", 1))
        desk.tell(Outcome(rid(1), true, AbandonReason.NONE, 6), signer = rival)
        assertTrue(desk.agent.state is State.Preparing)
        desk.tell(Outcome(rid(1), true, AbandonReason.NONE, 6))
        assertSame(State.Waiting, desk.agent.state)
    }

    @Test
    fun `a round goes on with its population's learner after a restart, and is left where that was left`() {
        val authority = edge.Authority(Desk.START)
        fun again(vararg populations: String) = Desk(folder, populations.toList(), authority = authority).also { open.add(it) }
        val desk = again("first", "second")
        desk.announce("second", "b", 2)
        desk.serve(desk.tell(desk.plan("b", 2)))
        desk.close()
        val later = again("first", "second")
        later.start()
        assertEquals("second", later.agent.takeJob()?.population)
        later.close()
        val gone = again("first")
        gone.start()
        assertSame(State.Waiting, gone.agent.state)
        assertTrue(gone.store.hasEnded(rid(2)))
    }

    @Test
    fun `a finished task's model is installed once, also after a round of the other`() {
        val desk = desk()
        desk.announce("first", "a", 1)
        desk.serve(desk.tell(desk.plan("a", 1)))
        desk.announce("second", "b", 2, TaskState.COMPLETE, version = 9)
        assertEquals(emptyList<Long>(), desk.learners.getValue("second").installed)
        desk.tell(Outcome(rid(1), false, AbandonReason.CANCELLED, 0))
        assertEquals(listOf(9L), desk.learners.getValue("second").installed)
        assertTrue(desk.agent.isComplete("second"))
        assertFalse(desk.agent.isComplete())
    }

    @Test
    fun `objections are by population, and said once`() {
        val desk = desk()
        desk.agent.considerConditions(mapOf("first" to listOf("not charging")), desk.now)
        desk.agent.considerConditions(mapOf("first" to listOf("not charging")), desk.now)
        assertEquals(emptyList<String>(), tasks(desk.announce("first", "a", 1)))
        assertEquals(listOf("b"), tasks(desk.announce("second", "b", 2)))
        assertEquals(listOf("not charging"), desk.events.filterIsInstance<Deferred>().map { it.reason })
    }

    @Test
    fun `no consent, no round, and what is revoked ends the open one`() {
        lateinit var consent: Consent
        val desk = desk(consent = { store -> Consent(store, { Desk.START }).also { consent = it } })
        assertEquals(emptyList<String>(), tasks(desk.announce("first", "a", 1)))
        val refusal = desk.tell(desk.plan("a", 1)).filterIsInstance<Decline>().single()
        assertEquals(DeclineReason.TASK_NOT_ALLOWED, refusal.reason)
        consent.grant("improve typing", "1")
        assertEquals(listOf("b"), tasks(desk.announce("second", "b", 2)))
        desk.serve(desk.tell(desk.plan("b", 2)))
        consent.revoke()
        assertEquals(DeclineReason.TASK_NOT_ALLOWED, desk.wait(0.0).filterIsInstance<Decline>().single().reason)
        assertEquals(listOf("first", "second"), desk.events.filterIsInstance<Refused>().map { it.population })
    }

    @Test
    fun `traffic over the budget is declined before anything is fetched, and the next day allows it`() {
        val desk = desk(Budget(bytesPerDay = 2_000.0))
        desk.announce("first", "a", 1)
        desk.agent.sent(2_000, desk.now)
        val said = desk.tell(desk.plan("a", 1))
        assertEquals(DeclineReason.OVER_TRAFFIC_BUDGET, said.filterIsInstance<Decline>().single().reason)
        assertTrue(said.none { it is Pull })
        assertEquals(emptyList<String>(), tasks(desk.announce("first", "a", 2)))
        desk.now = Budget.nextDay(desk.now)
        assertEquals(listOf("a"), tasks(desk.wait(0.0)))
    }

    @Test
    fun `what needs more memory than there is gets declined, and not tried again with that bundle`() {
        val desk = desk(free = 1_000_000)
        desk.learners.getValue("first").memory = 2_000_000
        desk.announce("first", "a", 1)
        val said = desk.serve(desk.tell(desk.plan("a", 1)))
        assertEquals(DeclineReason.OVER_MEMORY_BUDGET, said.filterIsInstance<Decline>().single().reason)
        assertEquals(emptyList<String>(), tasks(desk.announce("first", "a", 2)))
    }

    @Test
    fun `a training says how far it is, a hundred times at most, and enters what it costs each example`() {
        val desk = desk()
        desk.learners.getValue("first").sampling = Sampling(1.0, 0.5, 8)
        desk.announce("first", "a", 1)
        desk.serve(desk.tell(desk.plan("a", 1)))
        val job = checkNotNull(desk.agent.takeJob())
        val update = checkNotNull(desk.agent.train(job, { desk.now }) { false })
        val told = desk.events.filterIsInstance<Training>()
        assertEquals(100, told.size)
        assertEquals(FakeLearner.STEPS to (0..990 step 10).toList(), told.first().steps to told.map { it.done })
        desk.agent.trained(job, update, desk.now)
        assertEquals(listOf(Sampling(1.0, 0.5, 8)), desk.store.samplings())
    }

    @Test
    fun `a renewed certificate is taken between rounds only, and only this device's`() {
        val desk = desk()
        assertThrows(IdentityError::class.java) { desk.agent.adopt(desk.stranger()) }
        val renewed = desk.renewed()
        desk.announce("first", "a", 1)
        assertThrows(LocalProtocolError::class.java) { desk.agent.adopt(renewed) }
        desk.tell(Rejection("a", RejectionReason.ROUND_FULL, 600.0, 0.0))
        desk.agent.adopt(renewed)
        assertEquals(renewed.certificate, desk.agent.identity.certificate)
        desk.announce("second", "b", 2)
        assertTrue(desk.serve(desk.tell(desk.plan("b", 2))).any { it is AdvertiseKeys })
    }

    @Test
    fun `a clock that was put back does not make it wait for ever`() {
        val desk = desk()
        desk.announce("first", "a", 1)
        desk.tell(Rejection("a", RejectionReason.ROUND_FULL, 3_600.0, 0.0))
        assertEquals(emptyList<String>(), tasks(desk.wait(0.0)))
        assertEquals(listOf("a"), tasks(desk.clockSetBack(7_000.0)))
    }
}
