package edge.android

import android.app.ActivityManager
import android.content.Context
import android.net.ConnectivityManager
import android.os.BatteryManager
import android.os.Build
import android.os.PowerManager

/** Asks the phone. Cheap, and needs no permission but `ACCESS_NETWORK_STATE`. */
public class PhoneConditions(private val context: Context) {
    /** What the phone says now. */
    public fun read(): Conditions {
        val battery = context.service<BatteryManager>()
        val networks = context.service<ConnectivityManager>()
        val power = context.service<PowerManager>()
        val memory = ActivityManager.MemoryInfo()
        context.service<ActivityManager>().getMemoryInfo(memory)
        val percent = battery.getIntProperty(BatteryManager.BATTERY_PROPERTY_CAPACITY)
        val connected = networks.activeNetwork != null
        return Conditions(
            charging = battery.isCharging,
            battery = if (percent in 0..100) percent / 100.0 else null,
            connected = connected,
            metered = if (connected) networks.isActiveNetworkMetered else null,
            idle = !power.isInteractive,
            powerSave = power.isPowerSaveMode,
            hot = if (Build.VERSION.SDK_INT >= Build.VERSION_CODES.Q) isHot(power) else null,
            freeMemoryBytes = memory.availMem - memory.threshold,
            freeDiskBytes = context.noBackupFilesDir.usableSpace,
        )
    }

    @NewerApi
    private fun isHot(power: PowerManager) = power.currentThermalStatus >= PowerManager.THERMAL_STATUS_SEVERE
}
