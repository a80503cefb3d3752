package androidx.test.internal.runner.lifecycle

import android.app.Activity
import android.app.Application
import androidx.test.runner.lifecycle.ActivityLifecycleMonitor
import androidx.test.runner.lifecycle.ApplicationLifecycleMonitor
import androidx.test.runner.lifecycle.ApplicationStage
import androidx.test.runner.lifecycle.Stage

/** What Robolectric's instrumentation tells of activities. */
class ActivityLifecycleMonitorImpl : ActivityLifecycleMonitor {
    /** The activity is in that stage now. */
    @Suppress("UNUSED_PARAMETER")
    fun signalLifecycleChange(stage: Stage, activity: Activity) = Unit
}

/** What Robolectric's instrumentation tells of the application. */
class ApplicationLifecycleMonitorImpl : ApplicationLifecycleMonitor {
    /** The application is in that stage now. */
    @Suppress("UNUSED_PARAMETER")
    fun signalLifecycleChange(application: Application, stage: ApplicationStage) = Unit
}
