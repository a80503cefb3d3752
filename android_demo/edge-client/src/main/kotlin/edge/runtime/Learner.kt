package edge.runtime

import edge.Bytes
import edge.privacy.Sampling
import edge.protocol.BlobRef
import edge.protocol.Plan

/**
 * A fetched bundle: its head, and how to read those of its parts that the learner asked for.
 *
 * [read] may be called from any thread; it raises StoreError for a part that is gone or was damaged.
 */
public class Bundle(public val head: ByteArray, public val read: (BlobRef) -> ByteArray)

/** Train by this plan from this checkpoint; the result goes to [DeviceAgent.trained] or [DeviceAgent.failed]. */
public class TrainingJob internal constructor(
    public val plan: Plan,
    public val bundle: Bundle,
    public val checkpoint: ByteArray,
    public val seed: Bytes,
    public val population: String,
)

/**
 * What training came to: float32 little-endian in layout order, and what it releases of each example, where the bundle adds
 * noise for each.
 */
public class Update(public val values: Bytes, public val sampling: Sampling? = null)

/** The port behind which a device trains and serves. */
public interface Learner {
    /** What runs the graphs, such as "onnxruntime 1.29.0". */
    public val runtimeVersion: String

    /** Examples that could be trained on now. */
    public val exampleCount: Int

    /**
     * Authenticates a bundle's head, and names the parts of the bundle that this device needs.
     *
     * Raises ArtifactError: not signed by the pinned signer, tampered with, or without something this device needs.
     */
    public fun parts(head: ByteArray): List<BlobRef>

    /** Authenticates the bundle, sees that this runtime computes it right; the layout's dimension. Raises as [parts]. */
    public fun check(bundle: Bundle, checkpoint: ByteArray): Long

    /**
     * What training by this plan would release of each example now; null where nothing protects each.
     *
     * Raises as [parts].
     */
    public fun sampling(bundle: Bundle, plan: Plan): Sampling? = null

    /** About how many bytes of memory training by this plan takes, as the bundle of that head predicts; raises as [parts]. */
    public fun memoryBytes(head: ByteArray, plan: Plan): Long = 0

    /**
     * The update; null where [shouldStop], asked before every step, said so.
     *
     * [progress] is told before every step how many are done, and how many there will be. Raises TrainingError, or
     * BudgetExceeded: it took longer than the device allows.
     */
    public fun train(job: TrainingJob, progress: (done: Int, steps: Int) -> Unit, shouldStop: () -> Boolean): Update?

    /** Serves predictions from this model from now on; raises ArtifactError or StoreError, and the last one stays. */
    public fun install(version: Long, bundle: Bundle, checkpoint: ByteArray)
}
