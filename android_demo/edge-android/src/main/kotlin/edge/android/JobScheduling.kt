package edge.android

import android.app.job.JobInfo
import android.app.job.JobScheduler
import android.content.ComponentName
import android.content.Context

/** Asks the system's job scheduler for training jobs. [TrainingJobService] must be in the app's manifest. */
public class JobScheduling(private val context: Context) {
    private val scheduler: JobScheduler get() = context.service()

    /** Whether a job is waiting or running. */
    public fun isScheduled(id: Int): Boolean = scheduler.getPendingJob(id) != null

    /** Ask for a job; one with the same id that asks for the same stays as it is, and keeps its place in its period. */
    public fun schedule(spec: JobSpec) {
        val job = jobInfo(spec)
        if (scheduler.getPendingJob(spec.id) == job) return
        check(scheduler.schedule(job) == JobScheduler.RESULT_SUCCESS) {
            "the system refused job ${spec.id}: is TrainingJobService in the manifest, with BIND_JOB_SERVICE?"
        }
    }

    /** Forget a job, and stop it where it runs. */
    public fun cancel(id: Int) {
        scheduler.cancel(id)
    }

    /** The system's own description of a job. */
    public fun jobInfo(spec: JobSpec): JobInfo {
        val builder = JobInfo.Builder(spec.id, ComponentName(context, TrainingJobService::class.java))
            .setRequiresCharging(spec.charging)
            .setRequiresDeviceIdle(spec.idle)
            .setRequiredNetworkType(
                when (spec.network) {
                    Network.ANY -> JobInfo.NETWORK_TYPE_ANY
                    Network.UNMETERED -> JobInfo.NETWORK_TYPE_UNMETERED
                },
            )
            .setRequiresBatteryNotLow(spec.batteryNotLow)
            .setRequiresStorageNotLow(spec.storageNotLow)
            .setPersisted(spec.persisted)
        spec.periodMs?.let { builder.setPeriodic(it) }
        spec.backoffMs?.let { builder.setBackoffCriteria(it, JobInfo.BACKOFF_POLICY_EXPONENTIAL) }
        return builder.build()
    }
}
