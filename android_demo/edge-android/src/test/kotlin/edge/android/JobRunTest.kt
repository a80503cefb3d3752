package edge.android

import org.junit.jupiter.api.Assertions.assertEquals
import org.junit.jupiter.api.Assertions.assertFalse
import org.junit.jupiter.api.Assertions.assertTrue
import org.junit.jupiter.api.Test

class JobRunTest {
    private val threads = mutableListOf<() -> Unit>()
    private val finished = mutableListOf<Boolean>()
    private val failed = mutableListOf<Exception>()

    private fun run(work: TrainingWork) = JobRun(work, Eligibility(), { threads += it }, { failed += it }, { finished += it })

    @Test
    fun `a run that is done is not run again, one that is not is`() {
        run { _, _ -> WorkResult.DONE }.start()
        run { _, _ -> WorkResult.AGAIN }.start()
        assertEquals(emptyList<Boolean>(), finished)
        threads.forEach { it() }
        assertEquals(listOf(false, true), finished)
    }

    @Test
    fun `a run that fails is told, and tried again`() {
        run { _, _ -> error("no network") }.start()
        threads.single()()
        assertEquals(listOf("no network"), failed.map { it.message })
        assertEquals(listOf(true), finished)
    }

    @Test
    fun `when the system takes the phone back the work hears it, and the system is not told a second time`() {
        var seen = false
        val run = run { _, stop ->
            seen = stop.isStopped
            WorkResult.AGAIN
        }
        run.start()
        assertTrue(run.stop())
        threads.single()()
        assertTrue(seen)
        assertEquals(emptyList<Boolean>(), finished)
    }

    @Test
    fun `stopping a run that has just ended asks for no other`() {
        val run = run { _, _ -> WorkResult.DONE }
        run.start()
        threads.single()()
        assertFalse(run.stop())
        assertEquals(listOf(false), finished)
    }

    @Test
    fun `the work is given the conditions to hold`() {
        var given: Eligibility? = null
        run { eligibility, _ ->
            given = eligibility
            WorkResult.DONE
        }.start()
        threads.single()()
        assertEquals(Eligibility(), given)
    }
}
