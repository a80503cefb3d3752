package edge.training

import ai.onnxruntime.OnnxTensor
import edge.ArtifactError
import edge.TrainingError
import java.io.Closeable
import kotlin.math.abs

/** Examples that are read when they are asked for, so that no more are in memory than are at work. */
public interface Examples {
    /** How many there are. */
    public val count: Int

    /**
     * The examples at these places, by field; the first dimension is the rows. Those that are gone are left out.
     *
     * Raises StoreError.
     */
    public fun take(places: List<Int>): Map<String, Tensor>
}

/** What local training changed: trained minus initial values in layout order, over how many steps, at what mean loss. */
public class TrainingResult internal constructor(
    public val update: FloatArray,
    public val steps: Int,
    public val loss: Double,
)

/** Training was asked to stop before it was done; nothing of it is used. */
internal class TrainingStopped : Exception()

/**
 * Trains the model of a bundle on ONNX Runtime: a loop around the bundle's train graph.
 *
 * Making one replays the bundle's parity vector: a runtime that computes other values than the exporter certified must
 * not train. Raises ArtifactError: the runtime is too old or cannot load the graph, or the bundle asks for what this
 * client does not do; TrainingError: the runtime computes other values than the bundle was certified with.
 */
internal class OnnxTrainer(private val artifact: Artifact) : Closeable {
    private val manifest = artifact.manifest
    private val graph: OpenGraph

    init {
        if (manifest.privacy != null) {
            throw ArtifactError(
                "the bundle is private for each example, which this client does not train",
                "export it without example-level noise for these devices",
            )
        }
        graph = OpenGraph(artifact, "train")
        try {
            val worst = replayParity()
            // NaN must fail as well.
            if (!(worst <= 1.0)) {
                throw TrainingError(
                    "${Runtime.name} computes other values than this bundle was certified with: " +
                        "$worst times the allowed error",
                    "install another version of it; please report this processor and version",
                )
            }
        } catch (error: TrainingError) {
            graph.close()
            throw error
        }
    }

    /** The largest error of the parity vector's steps, as a share of what was allowed: at most 1 where all is well. */
    fun replayParity(): Double {
        val content = artifact.part(Manifest.PARITY_PART)
        val sampled = (manifest.layout.size + manifest.parityStride - 1) / manifest.parityStride
        var at = 0
        fun next(size: Int): ByteArray = content.copyOfRange(at, at + size).also { at += size }
        var worst = 0.0
        State(artifact.checkpoint()).use { state ->
            for (step in manifest.parity) {
                val rows = (manifest.inputs + manifest.target).associate { spec ->
                    spec.name to Tensor(spec.dtype, listOf(step.batch) + spec.row, next(step.batch * spec.rowBytes))
                }
                val expected = Tensor(Dtype.FLOAT32, listOf(sampled), next(4 * sampled)).floats()
                val allowed = Tensor(Dtype.FLOAT32, listOf(sampled), next(4 * sampled)).floats()
                val loss = state.step(rows, step.learningRate, step.seed)
                val errors = mutableListOf(abs(loss - step.loss) / step.lossTolerance)
                val found = state.vector()
                for (i in 0 until sampled) {
                    errors += abs(found[i * manifest.parityStride].toDouble() - expected[i]) / allowed[i]
                }
                for (error in errors) worst = if (error.isNaN()) Double.POSITIVE_INFINITY else maxOf(worst, error)
            }
        }
        return worst
    }

    /**
     * Trains from [checkpoint], which stays as it is; optimizer slots start at zero.
     *
     * [shouldStop] is asked before every step. Raises TrainingStopped: it said so; TrainingError: unusable checkpoint,
     * examples or plan, or a loss or update that is not finite.
     */
    fun train(
        checkpoint: FloatArray,
        examples: Examples,
        plan: TrainingPlan,
        seed: ByteArray,
        shouldStop: () -> Boolean = { false },
    ): TrainingResult {
        val count = examples.count
        if (count == 0) throw TrainingError("there are no examples", "add examples to the store before training")
        if (minOf(plan.batchSize, count) < manifest.batch.minimum || plan.batchSize > manifest.batch.maximum) {
            throw TrainingError(
                "this bundle trains on batches of ${manifest.batch.minimum} to ${manifest.batch.maximum}: batches of " +
                    "${plan.batchSize} are asked for, and there are $count examples",
                "correct the task's batch size, or add examples to the store before training",
            )
        }
        var steps = 0
        var seen = 0L
        var lossSum = 0.0
        State(checkpoint, plan.proximal).use { state ->
            for (rows in plan.batches(count, seed, manifest.batch.minimum)) {
                if (shouldStop()) throw TrainingStopped()
                val batch = ExampleCheck.rows(manifest, examples.take(rows))
                val there = batch.getValue(manifest.target.name).shape[0]
                if (there < manifest.batch.minimum) continue // Newer examples drove these out meanwhile.
                val loss = state.step(batch, plan.learningRate, TrainingPlan.stepSeed(seed, steps))
                if (loss.isNaN() || loss.isInfinite()) throw diverged("the loss of step ${steps + 1} is $loss", plan)
                steps++
                seen += there
                lossSum += loss * there
            }
            if (steps == 0) throw TrainingError("all examples went while they were to be trained on", "keep them for longer")
            val trained = state.vector()
            val update = FloatArray(trained.size) { trained[it] - checkpoint[it] }
            if (update.any { it.isNaN() || it.isInfinite() }) throw diverged("the update holds NaN or infinity", plan)
            return TrainingResult(update, steps, lossSum / maxOf(seen, 1))
        }
    }

    override fun close(): Unit = graph.close()

    private fun diverged(what: String, plan: TrainingPlan) =
        TrainingError("training diverged: $what", "use a learning rate below ${plan.learningRate}")

    /** Parameters, buffers and slots between steps, as the runtime holds them: outputs become inputs without a copy. */
    private inner class State(checkpoint: FloatArray, proximal: Float = 0f) : Closeable {
        private val tensors = HashMap<String, OnnxTensor>()

        init {
            val learned = manifest.layout.unflatten(checkpoint)
            if (proximal != 0f && !graph.spec.takes("proximal")) {
                throw TrainingError(
                    "a proximal term is asked for, which this bundle does not take",
                    "export it with correction=True (edge export --correction)",
                )
            }
            // proximal * (parameter - checkpoint) is added to gradients: the second half as a correction.
            val pulled = if (proximal == 0f) emptyMap() else manifest.layout.unflatten(
                FloatArray(checkpoint.size) { -proximal * checkpoint[it] },
            )
            for (spec in graph.spec.inputs) {
                val value = when (spec.role) {
                    "parameter", "buffer" -> learned.getValue(spec.name)
                    "slot" -> Tensor.zeros(spec.dtype, spec.fixed)
                    "proximal" -> Tensor.scalar(proximal)
                    "correction" -> pulled["parameter:" + spec.name.removePrefix("correction:")]
                        ?: Tensor.zeros(spec.dtype, spec.fixed)
                    else -> continue
                }
                tensors[spec.name] = Runtime.tensor(value)
            }
        }

        /** One optimizer step; the loss. */
        fun step(rows: Map<String, Tensor>, learningRate: Float, seed: Long): Double {
            val fed = rows + mapOf("learning_rate" to Tensor.scalar(learningRate), "seed" to Tensor.scalar(seed))
            val feeds = fed.mapValues { Runtime.tensor(it.value) }
            try {
                val outputs = graph.run(tensors + feeds)
                val loss = Runtime.values(outputs.getValue("loss")).floats().single().toDouble()
                val kept = graph.spec.feedback.map { it.output }.toSet()
                for ((output, input) in graph.spec.feedback) tensors.put(input, outputs.getValue(output))?.close()
                for ((name, value) in outputs) if (name !in kept) value.close()
                return loss
            } finally {
                feeds.values.forEach { it.close() }
            }
        }

        /** What is learned, in layout order. */
        fun vector(): FloatArray = manifest.layout.flatten { Runtime.values(tensors.getValue(it)).floats() }

        override fun close(): Unit = tensors.values.forEach { it.close() }
    }
}

/** Rows against what a model takes. */
internal object ExampleCheck {
    /** The fields that training takes; raises TrainingError where one is missing, does not fit or is out of range. */
    fun rows(manifest: Manifest, rows: Map<String, Tensor>): Map<String, Tensor> {
        val found = inputs(manifest.inputs + manifest.target, rows)
        val labels = found.getValue(manifest.target.name)
        if (found.values.any { it.shape[0] != labels.shape[0] }) {
            throw TrainingError("fields have different numbers of rows", "give every example its target")
        }
        val classes = manifest.classes
        if (classes != null && labels.dtype == Dtype.INT64) {
            val wrong = labels.longs().find { it != manifest.ignoredLabel && it !in 0 until classes }
            if (wrong != null) {
                throw TrainingError(
                    "labels must lie in 0..${classes - 1}, here is $wrong",
                    "map labels to class indices as in the model's training data",
                )
            }
        }
        return found
    }

    /** The named fields; raises TrainingError where one is missing, has another dtype or shape, or is not finite. */
    fun inputs(specs: List<TensorSpec>, rows: Map<String, Tensor>): Map<String, Tensor> = specs.associate { spec ->
        val tensor = rows[spec.name] ?: throw TrainingError(
            "the model takes ${specs.joinToString { it.name }}; ${spec.name} is not among ${rows.keys}",
            "name the fields as the model was exported with them: see edge inspect",
        )
        if (tensor.dtype != spec.dtype || tensor.shape.isEmpty() || tensor.shape.drop(1) != spec.row) {
            throw TrainingError(
                "${spec.name} is $tensor, the model takes ${spec.dtype.title} with rows of ${spec.row}",
                "prepare examples as the model was exported to take them",
            )
        }
        if (!tensor.isFinite()) throw TrainingError("${spec.name} holds NaN or infinity", "drop or repair those examples")
        spec.name to tensor
    }
}
