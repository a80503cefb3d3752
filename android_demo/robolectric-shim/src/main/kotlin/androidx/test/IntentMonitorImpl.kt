package androidx.test.internal.runner.intent

import android.content.Intent
import androidx.test.runner.intent.IntentMonitor

/** What Robolectric's instrumentation tells of intents. */
class IntentMonitorImpl : IntentMonitor {
    /** An activity is about to be started. */
    @Suppress("UNUSED_PARAMETER")
    fun signalIntent(intent: Intent) = Unit
}
