package edge.android

import org.junit.jupiter.api.Assertions.assertEquals
import org.junit.jupiter.api.Assertions.assertFalse
import org.junit.jupiter.api.Assertions.assertNotEquals
import org.junit.jupiter.api.Assertions.assertNull
import org.junit.jupiter.api.Assertions.assertThrows
import org.junit.jupiter.api.Assertions.assertTrue
import org.junit.jupiter.api.Test

class JobPlansTest {
    @Test
    fun `the periodic job waits for a charging, idle phone on a free network, and survives reboots`() {
        val job = JobPlans.periodic(Eligibility(everyHours = 6))
        assertTrue(job.charging && job.idle && job.persisted)
        assertEquals(Network.UNMETERED, job.network)
        assertEquals(6 * 3_600_000L, job.periodMs)
        // With an idle phone Android takes no other back-off than its own.
        assertNull(job.backoffMs)
    }

    @Test
    fun `the job that the person asks for does not wait for an idle phone, and is forgotten at a reboot`() {
        val job = JobPlans.once(Eligibility())
        assertFalse(job.idle)
        assertFalse(job.persisted)
        assertTrue(job.charging)
        assertEquals(Network.UNMETERED, job.network)
        assertNull(job.periodMs)
    }

    @Test
    fun `what the app does not ask for, the scheduler is not asked for, but a network always`() {
        val lenient = Eligibility(charging = false, idle = false, unmetered = false)
        for (job in listOf(JobPlans.periodic(lenient), JobPlans.once(lenient))) {
            assertFalse(job.charging || job.idle)
            assertEquals(Network.ANY, job.network)
            assertEquals(30_000L, job.backoffMs)
        }
    }

    @Test
    fun `the two jobs do not take each other's place`() {
        assertNotEquals(JobPlans.PERIODIC_ID, JobPlans.ONCE_ID)
    }

    @Test
    fun `what Android would refuse is refused before`() {
        val job = JobPlans.periodic(Eligibility())
        assertThrows(IllegalArgumentException::class.java) { job.copy(periodMs = 60_000) }
        assertThrows(IllegalArgumentException::class.java) { job.copy(backoffMs = 30_000) }
    }
}
