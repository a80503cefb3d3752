package edge.training

import edge.Bytes
import edge.TrainingError
import edge.inference.InstalledModels
import edge.privacy.Sampling
import edge.protocol.BlobRef
import edge.protocol.Plan
import edge.runtime.Bundle
import edge.runtime.Learner
import edge.runtime.TrainingJob
import edge.runtime.Update
import edge.secagg.Suite
import java.io.Closeable
import java.security.interfaces.ECPublicKey

/**
 * Training and serving on this device: the agent's port, filled with the example store and ONNX Runtime.
 *
 * [signer] is the pinned key that bundles must be signed with; [examples] are null on a device that only serves. Knows
 * nothing of rounds, messages or brokers.
 */
public class LocalLearner(
    private val signer: ECPublicKey,
    private val examples: ExampleStore?,
    private val models: InstalledModels,
) : Learner, Closeable {
    private var newest: Pair<Artifact, OnnxTrainer>? = null

    override val runtimeVersion: String get() = Runtime.name

    override val exampleCount: Int get() = examples?.count ?: 0

    override fun parts(head: ByteArray): List<BlobRef> {
        val artifact = Artifact.parseHead(head, signer)
        val manifest = artifact.manifest
        val clip = if (manifest.privacy == null) emptyList() else listOf(manifest.graph("clip").part)
        val names = clip + listOf(manifest.graph("train").part, manifest.graph("infer").part) +
            listOf(Manifest.CHECKPOINT_PART, Manifest.PARITY_PART) + manifest.frozenParts
        return artifact.references(names)
    }

    override fun check(bundle: Bundle, checkpoint: ByteArray): Long {
        val layout = open(bundle).first.manifest.layout
        layout.decode(checkpoint)
        return layout.size.toLong()
    }

    override fun sampling(bundle: Bundle, plan: Plan): Sampling? {
        val count = exampleCount
        if (count == 0) return null
        return artifact(bundle).manifest.privacy?.sampling(TrainingPlan.of(plan), count)
    }

    override fun train(job: TrainingJob, progress: (Int, Int) -> Unit, shouldStop: () -> Boolean): Update? {
        val store = examples ?: throw TrainingError("this device holds no examples", "add some, or let it only serve")
        val (artifact, trainer) = open(job.bundle)
        val layout = artifact.manifest.layout
        val plan = TrainingPlan.of(job.plan)
        val rows = store.snapshot()
        val sampling = artifact.manifest.privacy?.sampling(plan, rows.count)
        val steps = sampling?.steps?.toInt() ?: plan.steps(rows.count, artifact.manifest.batch.minimum)
        var asked = 0
        val result = try {
            trainer.train(layout.decode(job.checkpoint), rows, plan, job.seed.array) {
                progress(asked++, steps)
                shouldStop()
            }
        } catch (_: TrainingStopped) {
            return null
        }
        return Update(Bytes(Layout.encode(result.update)), sampling)
    }

    override fun install(version: Long, bundle: Bundle, checkpoint: ByteArray) {
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
        val opened = artifact to OnnxTrainer(artifact)
        newest?.second?.close()
        newest = opened
        return opened
    }

    private fun artifact(bundle: Bundle): Artifact =
        Artifact.parseHead(bundle.head, signer).withParts(parts(bundle.head).map(bundle.read))
}
