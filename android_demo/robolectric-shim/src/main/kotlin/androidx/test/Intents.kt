package androidx.test.runner.intent

import android.app.Instrumentation
import android.content.Intent

/** Told of intents, which nobody here asks for. */
interface IntentMonitor

/** Where a test would find the monitor. */
object IntentMonitorRegistry {
    /** Robolectric registers its own. */
    @JvmStatic
    @Suppress("UNUSED_PARAMETER")
    fun registerInstance(monitor: IntentMonitor?) = Unit
}

/** Answers intents in the place of an activity. */
fun interface IntentStubber {
    /** Null: the activity itself answers. */
    fun getActivityResultForIntent(intent: Intent): Instrumentation.ActivityResult?
}

/** No test here answers intents. */
object IntentStubberRegistry {
    /** Whether a test registered one. */
    @JvmStatic
    fun isLoaded(): Boolean = false

    /** Not asked for while [isLoaded] is false. */
    @JvmStatic
    fun getInstance(): IntentStubber = error("no intent stubber is registered")
}
