package edge.android

import java.util.concurrent.atomic.AtomicBoolean

/** How a run ended. */
public enum class WorkResult {
    /** There is nothing more to do until the next period. */
    DONE,

    /** It was stopped, or a round is still open: run it again when conditions allow. */
    AGAIN,
}

/** Says when a run must end. A step of training asks before it begins; the system gives about ten minutes in all. */
public class StopSignal {
    private val stopped = AtomicBoolean(false)

    /** Whether to end now, at the next place from which the work can be resumed. */
    public val isStopped: Boolean get() = stopped.get()

    /** End soon. */
    public fun stop() {
        stopped.set(true)
    }
}

/** What a training job does. Called on a thread of its own; it keeps what it needs to resume on disk as it goes. */
public fun interface TrainingWork {
    /** Take part until there is nothing to do, or `stop` says so. What it throws is a failed run, tried again later. */
    public fun run(eligibility: Eligibility, stop: StopSignal): WorkResult
}

/** The app's `Application` implements this, since the system may start a process for a job alone, without an activity. */
public interface TrainingApp {
    /** When this app trains. */
    public val eligibility: Eligibility

    /** What its jobs do. */
    public val trainingWork: TrainingWork

    /** A run threw this; the job is tried again later. */
    public fun trainingFailed(error: Exception)
}

/**
 * The life of one job, without the system's classes: starts the work, ends it when told, and says once how it ended.
 *
 * @param startThread runs a block on another thread.
 * @param finished told exactly once, unless [stop] came first: whether the job must run again.
 */
public class JobRun(
    private val work: TrainingWork,
    private val eligibility: Eligibility,
    private val startThread: (() -> Unit) -> Unit,
    private val failed: (Exception) -> Unit,
    private val finished: (again: Boolean) -> Unit,
) {
    private val signal = StopSignal()
    private val over = AtomicBoolean(false)

    /** Begin. */
    public fun start() {
        startThread {
            // A work that throws must not take the process, and the app that the person may be using, with it.
            @Suppress("TooGenericExceptionCaught")
            val again = try {
                work.run(eligibility, signal) == WorkResult.AGAIN
            } catch (error: Exception) {
                failed(error)
                true
            }
            if (over.compareAndSet(false, true)) finished(again)
        }
    }

    /** The system takes its conditions back. @return whether to run again later: yes, unless it had just ended. */
    public fun stop(): Boolean {
        signal.stop()
        return over.compareAndSet(false, true)
    }
}
