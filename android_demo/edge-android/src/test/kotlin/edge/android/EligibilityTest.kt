package edge.android

import org.junit.jupiter.api.Assertions.assertEquals
import org.junit.jupiter.api.Assertions.assertThrows
import org.junit.jupiter.api.Test

class EligibilityTest {
    private val good = Conditions(
        charging = true,
        battery = 0.9,
        connected = true,
        metered = false,
        idle = true,
        powerSave = false,
        hot = false,
        freeMemoryBytes = 1L shl 32,
        freeDiskBytes = 1L shl 32,
    )

    @Test
    fun `each condition has its objection`() {
        val bad = mapOf(
            good.copy(charging = false) to Objection.NOT_CHARGING,
            good.copy(battery = 0.1) to Objection.LOW_BATTERY,
            good.copy(connected = false) to Objection.NO_NETWORK,
            good.copy(metered = true) to Objection.METERED,
            good.copy(idle = false) to Objection.IN_USE,
            good.copy(powerSave = true) to Objection.POWER_SAVE,
            good.copy(hot = true) to Objection.HOT,
            good.copy(freeMemoryBytes = 1) to Objection.LITTLE_MEMORY,
            good.copy(freeDiskBytes = 1) to Objection.LITTLE_DISK,
        )
        assertEquals(Objection.entries.toSet(), bad.values.toSet())
        assertEquals(emptyList<Objection>(), Eligibility().objections(good))
        for ((conditions, objection) in bad) assertEquals(listOf(objection), Eligibility().objections(conditions))
    }

    @Test
    fun `what the phone cannot tell is no objection`() {
        assertEquals(emptyList<Objection>(), Eligibility().objections(Conditions()))
    }

    @Test
    fun `what the app does not ask for is no objection`() {
        val lenient = Eligibility(charging = false, idle = false, unmetered = false)
        assertEquals(
            emptyList<Objection>(),
            lenient.objections(good.copy(charging = false, idle = false, metered = true)),
        )
    }

    @Test
    fun `somebody who asks is holding the phone`() {
        val conditions = good.copy(idle = false, charging = false)
        assertEquals(listOf(Objection.NOT_CHARGING), Eligibility().now().objections(conditions))
    }

    @Test
    fun `values out of range are refused`() {
        assertThrows(IllegalArgumentException::class.java) { Eligibility(batteryAtLeast = 20.0) }
        assertThrows(IllegalArgumentException::class.java) { Eligibility(everyHours = 0) }
        assertThrows(IllegalArgumentException::class.java) { Eligibility(everyHours = 200) }
    }
}
