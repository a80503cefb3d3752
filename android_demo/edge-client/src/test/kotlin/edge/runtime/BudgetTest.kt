package edge.runtime

import edge.BudgetExceeded
import edge.ConfigError
import edge.protocol.DeclineReason
import java.io.File
import org.junit.jupiter.api.Assertions.assertEquals
import org.junit.jupiter.api.Assertions.assertFalse
import org.junit.jupiter.api.Assertions.assertNotNull
import org.junit.jupiter.api.Assertions.assertNull
import org.junit.jupiter.api.Assertions.assertThrows
import org.junit.jupiter.api.Assertions.assertTrue
import org.junit.jupiter.api.Test
import org.junit.jupiter.api.io.TempDir

/** What training may take: each bound holds, and what it refuses is said in words. */
class BudgetTest {
    @TempDir
    lateinit var folder: File

    private val day = 86_400.0

    @Test
    fun `a pace leaves the processor to others for its share of the time`() {
        var now = 0.0
        val pacer = Pacer(Budget(cpuShare = 0.25), { false }, { now }, { now += it })
        repeat(10) {
            now += 1.0 // a step
            assertFalse(pacer.isOver())
        }
        assertEquals(40.0, now, 0.5)
    }

    @Test
    fun `who is to stop does not pause first, and a training that takes too long ends`() {
        var now = 0.0
        assertTrue(Pacer(Budget(cpuShare = 0.01), { true }, { now }, { throw AssertionError("it slept") }).isOver())
        val slow = Pacer(Budget(wallS = 5.0), { false }, { now }, { now += it })
        now += 4.0
        assertFalse(slow.isOver())
        now += 2.0
        assertThrows(BudgetExceeded::class.java) { slow.isOver() }
    }

    @Test
    fun `traffic is counted by the day, also over restarts`() {
        DeviceStore(folder).use { store ->
            val traffic = Traffic(Budget(bytesPerDay = 1_000.0), store)
            traffic.count(400, 10.0)
            assertNull(traffic.objection(600, 10.0))
            val refusal = traffic.objection(601, 10.0)
            assertEquals(DeclineReason.OVER_TRAFFIC_BUDGET, refusal?.reason)
            assertTrue("which is less" !in refusal?.detail.orEmpty())
            assertTrue("which is less" in traffic.objection(1_001, 10.0)?.detail.orEmpty())
            traffic.keep()
        }
        DeviceStore(folder).use { store ->
            val again = Traffic(Budget(bytesPerDay = 1_000.0), store)
            again.count(600, 20.0)
            assertEquals(1_000, again.used(20.0))
            assertNotNull(again.objection(0, 20.0))
            assertNull(again.objection(1_000, day + 1))
            assertEquals(day, Budget.nextDay(20.0))
        }
    }

    @Test
    fun `memory is refused by the bound, or by what is free`() {
        val budget = Budget(memoryMb = 2.0)
        assertNull(budget.memoryObjection(2_000_000, null))
        assertEquals(DeclineReason.OVER_MEMORY_BUDGET, budget.memoryObjection(2_000_001, null)?.reason)
        assertTrue("1 are free" in budget.memoryObjection(1_500_000, 1_000_000)?.detail.orEmpty())
    }

    @Test
    fun `what cannot be held to is refused`() {
        for (make in listOf({ Budget(cpuShare = 0.0) }, { Budget(threads = 0) }, { Budget(wallS = Double.NaN) })) {
            assertThrows(ConfigError::class.java) { make() }
        }
    }
}
