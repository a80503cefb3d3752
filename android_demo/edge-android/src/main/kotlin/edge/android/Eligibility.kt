package edge.android

/**
 * What the phone says now; null where it cannot tell.
 *
 * @property charging on external power.
 * @property battery charge, 0 to 1.
 * @property connected whether there is a network.
 * @property metered whether it is paid for by volume.
 * @property idle whether nobody is using the phone: its screen is off.
 * @property powerSave whether the person asked the phone to save power.
 * @property hot whether the phone is slowing down because of heat.
 * @property freeMemoryBytes what the system can give before it kills apps.
 * @property freeDiskBytes what this app can still write.
 */
public data class Conditions(
    val charging: Boolean? = null,
    val battery: Double? = null,
    val connected: Boolean? = null,
    val metered: Boolean? = null,
    val idle: Boolean? = null,
    val powerSave: Boolean? = null,
    val hot: Boolean? = null,
    val freeMemoryBytes: Long? = null,
    val freeDiskBytes: Long? = null,
)

/** Why a phone does not train now. */
public enum class Objection { NOT_CHARGING, LOW_BATTERY, NO_NETWORK, METERED, IN_USE, POWER_SAVE, HOT, LITTLE_MEMORY, LITTLE_DISK }

/**
 * When a phone trains. The system's scheduler holds it to charging, idle and unmetered; the rest is checked when the job
 * starts, and again while it runs.
 *
 * @property charging on external power only.
 * @property idle only while nobody uses the phone.
 * @property unmetered on unmetered networks only.
 * @property everyHours how often a phone looks whether it is wanted.
 * @property batteryAtLeast charge from 0 to 1, also on external power.
 * @property memoryAtLeastBytes free memory.
 * @property diskAtLeastBytes free disk.
 */
public data class Eligibility(
    val charging: Boolean = true,
    val idle: Boolean = true,
    val unmetered: Boolean = true,
    val everyHours: Int = 6,
    val batteryAtLeast: Double = 0.2,
    val memoryAtLeastBytes: Long = 256L shl 20,
    val diskAtLeastBytes: Long = 64L shl 20,
) {
    init {
        require(batteryAtLeast in 0.0..1.0) { "a battery of $batteryAtLeast is out of range: give a charge from 0 to 1" }
        require(everyHours in 1..HOURS_A_WEEK) { "every $everyHours hours is out of range: give 1 to $HOURS_A_WEEK" }
    }

    /** The same, as somebody asks who is holding the phone: it need not be idle, everything else stays. */
    public fun now(): Eligibility = copy(idle = false)

    /** Why not now; empty where nothing is against it. What the phone cannot tell is no objection. */
    public fun objections(conditions: Conditions): List<Objection> = with(conditions) {
        listOfNotNull(
            Objection.NOT_CHARGING.takeIf { this@Eligibility.charging && charging == false },
            Objection.LOW_BATTERY.takeIf { battery != null && battery < batteryAtLeast },
            Objection.NO_NETWORK.takeIf { connected == false },
            Objection.METERED.takeIf { unmetered && connected != false && metered == true },
            Objection.IN_USE.takeIf { this@Eligibility.idle && idle == false },
            Objection.POWER_SAVE.takeIf { powerSave == true },
            Objection.HOT.takeIf { hot == true },
            Objection.LITTLE_MEMORY.takeIf { freeMemoryBytes != null && freeMemoryBytes < memoryAtLeastBytes },
            Objection.LITTLE_DISK.takeIf { freeDiskBytes != null && freeDiskBytes < diskAtLeastBytes },
        )
    }

    private companion object {
        const val HOURS_A_WEEK = 168
    }
}
