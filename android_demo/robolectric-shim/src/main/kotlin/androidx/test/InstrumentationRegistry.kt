package androidx.test.platform.app

import android.app.Instrumentation
import android.os.Bundle

/** Holds the test's instrumentation. */
object InstrumentationRegistry {
    private var registered: Instrumentation? = null

    /** Robolectric hands it over before a test, and null after it. */
    @JvmStatic
    @Suppress("UNUSED_PARAMETER")
    fun registerInstance(instrumentation: Instrumentation?, arguments: Bundle?) {
        registered = instrumentation
    }

    /** The one of the test that runs. */
    @JvmStatic
    fun getInstrumentation(): Instrumentation = checkNotNull(registered) { "no Robolectric test runs" }
}
