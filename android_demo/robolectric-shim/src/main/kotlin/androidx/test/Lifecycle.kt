package androidx.test.runner.lifecycle

/** Where an activity is in its life. */
enum class Stage { PRE_ON_CREATE, CREATED, STARTED, RESUMED, PAUSED, STOPPED, RESTARTED, DESTROYED }

/** Where an application is in its life. */
enum class ApplicationStage { PRE_ON_CREATE, CREATED }

/** Told of activities' stages, which nobody here asks for. */
interface ActivityLifecycleMonitor

/** Told of applications' stages, which nobody here asks for. */
interface ApplicationLifecycleMonitor

/** Where a test would find the monitor. */
object ActivityLifecycleMonitorRegistry {
    /** Robolectric registers its own. */
    @JvmStatic
    @Suppress("UNUSED_PARAMETER")
    fun registerInstance(monitor: ActivityLifecycleMonitor?) = Unit
}

/** Where a test would find the monitor. */
object ApplicationLifecycleMonitorRegistry {
    /** Robolectric registers its own. */
    @JvmStatic
    @Suppress("UNUSED_PARAMETER")
    fun registerInstance(monitor: ApplicationLifecycleMonitor?) = Unit
}
