package edge.android

import android.app.job.JobParameters
import android.app.job.JobService
import java.util.concurrent.ConcurrentHashMap
import kotlin.concurrent.thread

/** Where the system starts training jobs. The manifest declares it with the permission `BIND_JOB_SERVICE`. */
public class TrainingJobService : JobService() {
    private val runs = ConcurrentHashMap<Int, JobRun>()

    override fun onStartJob(params: JobParameters): Boolean {
        val app = application as? TrainingApp
            ?: error("${application.javaClass.name} must implement edge.android.TrainingApp to run training jobs")
        val asked = params.jobId == JobPlans.ONCE_ID
        val eligibility = if (asked) app.eligibility.now() else app.eligibility
        val run = JobRun(
            app.trainingWork,
            eligibility,
            startThread = { thread(name = "edge-training", block = it) },
            failed = app::trainingFailed,
            finished = { again ->
                runs.remove(params.jobId)
                jobFinished(params, again)
            },
        )
        runs[params.jobId] = run
        run.start()
        return true
    }

    override fun onStopJob(params: JobParameters): Boolean = runs.remove(params.jobId)?.stop() ?: false
}
