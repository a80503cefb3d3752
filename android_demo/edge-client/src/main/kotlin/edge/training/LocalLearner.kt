package edge.training

import edge.Bytes
import edge.TrainingError
import edge.analytics.Analyst
import edge.analytics.Query
import edge.inference.InstalledModels
import edge.privacy.Sampling
import edge.protocol.BlobRef
import edge.protocol.Plan
import edge.runtime.Budget
import edge.runtime.Bundle
import edge.runtime.Learner
import edge.runtime.Pacer
import edge.runtime.TrainingJob
import edge.runtime.Update
import edge.secagg.Suite
import java.io.Closeable
import java.security.interfaces.ECPublicKey

/**
 * Training and serving on this device: the agent's port, filled with the example store and ONNX Runtime.
 *
 * [signer] is the pinned key that bundles must be signed with; [examples] are null on a device that only serves; with
 * [analytics] it answers queries too; [budget] is of threads, processor and time. Knows nothing of rounds, messages or
 * brokers.
 */
public class LocalLearner(
    private val signer: ECPublicKey,
    private val examples: ExampleStore?,
    private val models: InstalledModels,
    analytics: Boolean = false,
    private val budget: Budget = Budget(),
) : Learner, Closeable {
    private val analyst = Analyst(signer, examples, analytics)
    private var newest: Pair<Artifact, OnnxTrainer>? = null

    override val runtimeVersion: String get() = Runtime.name

    override val exampleCount: Int get() = examples?.count(heldOut = false) ?: 0

    override fun parts(head: ByteArray): List<BlobRef> {
        if (Query.isOne(head)) return analyst.parts(head)
        val artifact = Artifact.parseHead(head, signer)
        val manifest = artifact.manifest
        val clip = if (manifest.privacy == null) emptyList() else listOf(manifest.graph("clip").part)
        val names = clip + listOf(manifest.graph("train").part, manifest.graph("infer").part) +
            listOf(Manifest.CHECKPOINT_PART, Manifest.PARITY_PART) + manifest.frozenParts
        return artifact.references(names)
    }

    override fun check(bundle: Bundle, checkpoint: ByteArray): Long {
        if (Query.isOne(bundle.head)) return analyst.check(bundle.head)
        val layout = open(bundle).first.manifest.layout
        layout.decode(checkpoint)
        return layout.size.toLong()
    }

    override fun sampling(bundle: Bundle, plan: Plan): Sampling? {
        val count = exampleCount
        if (count == 0 || Query.isOne(bundle.head)) return null
        return artifact(bundle).manifest.privacy?.sampling(TrainingPlan.of(plan), count)
    }

    override fun memoryBytes(head: ByteArray, plan: Plan): Long {
        if (Query.isOne(head)) return 0
        val count = if (exampleCount == 0) Int.MAX_VALUE else exampleCount
        return Artifact.parseHead(head, signer).manifest.memory.predictedBytes(minOf(TrainingPlan.of(plan).batchSize, count))
    }

    override fun train(job: TrainingJob, progress: (Int, Int) -> Unit, shouldStop: () -> Boolean): Update? {
        if (Query.isOne(job.bundle.head)) return Update(analyst.answer(job.bundle))
        val store = examples ?: throw TrainingError("this device holds no examples", "add some, or let it only serve")
        val (artifact, trainer) = open(job.bundle)
        val layout = artifact.manifest.layout
        val plan = TrainingPlan.of(job.plan)
        val rows = store.snapshot(heldOut = false)
        val sampling = artifact.manifest.privacy?.sampling(plan, rows.count)
        val steps = sampling?.steps?.toInt() ?: plan.steps(rows.count, artifact.manifest.batch.minimum)
        val pacer = Pacer(budget, shouldStop)
        var asked = 0
        val result = try {
            trainer.train(layout.decode(job.checkpoint), rows, plan, job.seed.array) {
                progress(asked++, steps)
                pacer.isOver()
            }
        } catch (_: TrainingStopped) {
            return null
        }
        return Update(Bytes(Layout.encode(result.update)), sampling)
    }

    override fun install(version: Long, bundle: Bundle, checkpoint: ByteArray) {
        if (Query.isOne(bundle.head)) return // of a query's result nothing is served
        val artifact = artifact(bundle)
        models.install(artifact, version, artifact.manifest.layout.decode(checkpoint))
    }

    @Synchronized
    override fun close() {
        newest?.second?.close()
        newest = null
    }

    /** The bundle, checked in every way, its training graph open; the one used last is kept, as rounds share it. */
    @Synchronized
    private fun open(bundle: Bundle): Pair<Artifact, OnnxTrainer> {
        val digest = Bytes(Suite.digest(bundle.head))
        newest?.let { if (it.first.sha256 == digest) return it }
        val artifact = artifact(bundle)
        val opened = artifact to OnnxTrainer(artifact, threads = budget.threads)
        newest?.second?.close()
        newest = opened
        return opened
    }

    private fun artifact(bundle: Bundle): Artifact =
        Artifact.parseHead(bundle.head, signer).withParts(parts(bundle.head).map(bundle.read))
}
