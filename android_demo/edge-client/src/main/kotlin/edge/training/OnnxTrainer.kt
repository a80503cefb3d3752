package edge.training

import ai.onnxruntime.OnnxTensor
import edge.PrivacyError
import edge.TrainingError
import edge.privacy.Gaussian
import edge.privacy.Subsampled
import edge.secagg.Stream
import java.io.Closeable
import java.security.SecureRandom
import kotlin.math.abs
import kotlin.math.sqrt

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
 * Where the bundle is private for each example, its clip graph gives the sum of the examples' clipped gradients, and the train
 * graph takes what the device makes of that sum, noise included; samples and noise come from [entropy], secret random bytes.
 * Making one replays the bundle's parity vector: a runtime that computes other values than the exporter certified must
 * not train. Raises ArtifactError: the runtime is too old or cannot load the graph, or the bundle asks for what this
 * client does not do; TrainingError: the runtime computes other values than the bundle was certified with.
 */
internal class OnnxTrainer(
    private val artifact: Artifact,
    private val entropy: (Int) -> ByteArray = { count -> ByteArray(count).also(SecureRandom()::nextBytes) },
    threads: Int = 1,
) : Closeable {
    private val manifest = artifact.manifest
    private val graph: OpenGraph
    private val clip: OpenGraph?

    init {
        graph = OpenGraph(artifact, "train", threads)
        clip = if (manifest.privacy == null) null else OpenGraph(artifact, "clip", threads)
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
            close()
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
                val loss = if (manifest.privacy == null) {
                    state.step(rows, step.learningRate, step.seed)
                } else {
                    // Of several examples the last counts nothing.
                    val weights = FloatArray(step.batch) { if (it > 0 && it == step.batch - 1) 0f else 1f }
                    val (sum, loss) = state.clippedSum(rows, weights, step.seed)
                    state.move(sum, step.learningRate, step.seed)
                    loss
                }
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
        manifest.privacy?.let { return trainPrivately(checkpoint, examples, plan, seed, it, shouldStop) }
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
            return TrainingResult(updateOf(state, checkpoint, plan), steps, lossSum / maxOf(seen, 1))
        }
    }

    /** Steps of Poisson samples, from secret randomness; a sample may be empty, and is run in parts of the batch size. */
    private fun trainPrivately(
        checkpoint: FloatArray,
        examples: Examples,
        plan: TrainingPlan,
        seed: ByteArray,
        privacy: ExamplePrivacy,
        shouldStop: () -> Boolean,
    ): TrainingResult {
        val count = examples.count
        val samples = Stream(entropy(ENTROPY_BYTES))
        val steps = privacy.steps(plan, count).toInt()
        var seen = 0L
        var lossSum = 0.0
        State(checkpoint, plan.proximal).use { state ->
            for (step in 0 until steps) {
                if (shouldStop()) throw TrainingStopped()
                val total = DoubleArray(manifest.layout.size)
                val parts = Subsampled.poissonSample(count, privacy.rate(count), samples).chunked(plan.batchSize)
                parts.forEachIndexed { place, places ->
                    val rows = ExampleCheck.rows(manifest, examples.take(places))
                    val there = rows.getValue(manifest.target.name).shape[0]
                    if (there == 0) return@forEachIndexed
                    val maskSeed = (TrainingPlan.stepSeed(seed, step) + place.toLong() * plan.batchSize) % SEED_LIMIT
                    val weights = FloatArray(there) { 1f }
                    val (sum, loss) = state.clippedSum(rows, weights, maskSeed)
                    checkClipped(sum, there, privacy)
                    for (i in total.indices) total[i] += sum[i]
                    if (loss.isNaN() || loss.isInfinite()) throw diverged("the loss of step ${step + 1} is $loss", plan)
                    seen += there
                    lossSum += loss * there
                }
                val noise = Stream(entropy(ENTROPY_BYTES))
                val private = try {
                    Gaussian.noised(total, privacy.clipNorm * (1 + CLIP_SLACK), privacy.noiseMultiplier, noise)
                } catch (error: PrivacyError) {
                    throw TrainingError("the gradients cannot be given noise: ${error.message}", error.hint, error)
                }
                state.move(private, plan.learningRate, TrainingPlan.stepSeed(seed, step))
            }
            return TrainingResult(updateOf(state, checkpoint, plan), steps, lossSum / maxOf(seen, 1))
        }
    }

    private fun updateOf(state: State, checkpoint: FloatArray, plan: TrainingPlan): FloatArray {
        val trained = state.vector()
        val update = FloatArray(trained.size) { trained[it] - checkpoint[it] }
        if (update.any { it.isNaN() || it.isInfinite() }) throw diverged("the update holds NaN or infinity", plan)
        return update
    }

    /** Refuses a sum that clipped gradients cannot have. Of a single row, this shows that it was clipped. */
    private fun checkClipped(sum: DoubleArray, rows: Int, privacy: ExamplePrivacy) {
        val length = sqrt(sum.sumOf { it * it })
        // Also false for NaN.
        if (!(length <= rows * privacy.clipNorm * (1 + CLIP_SLACK))) {
            throw TrainingError(
                "the sum of $rows clipped gradients is $length long, which is more than $rows times ${privacy.clipNorm}",
                "lower the learning rate; if that does not help, the bundle does not do what it promises",
            )
        }
    }

    override fun close() {
        clip?.close()
        graph.close()
    }

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
                feedBack(outputs)
                return loss
            } finally {
                feeds.values.forEach { it.close() }
            }
        }

        /** The sum of the rows' clipped gradients, in layout order, and their mean loss. */
        fun clippedSum(rows: Map<String, Tensor>, weights: FloatArray, seed: Long): Pair<DoubleArray, Double> {
            val norm = checkNotNull(manifest.privacy).clipNorm.toFloat()
            val fed = rows + mapOf(
                "weight" to Tensor.of(weights),
                "clip_norm" to Tensor.scalar(norm),
                "seed" to Tensor.scalar(seed),
            )
            val feeds = fed.mapValues { Runtime.tensor(it.value) }
            try {
                val outputs = checkNotNull(clip).run(tensors + feeds)
                val values = outputs.mapValues { Runtime.values(it.value) }
                outputs.values.forEach { it.close() }
                val sum = DoubleArray(manifest.layout.size)
                var at = 0
                for (entry in manifest.layout.entries) {
                    for (value in values.getValue("gradient:${entry.name}").floats()) sum[at++] = value.toDouble()
                }
                return sum to values.getValue("loss").floats().single().toDouble()
            } finally {
                feeds.values.forEach { it.close() }
            }
        }

        /** Lets the optimizer step with a sum of gradients, of which it gets the mean over the lot. */
        fun move(sum: DoubleArray, learningRate: Float, seed: Long) {
            val lot = checkNotNull(manifest.privacy).lotSize
            val mean = manifest.layout.unflatten(FloatArray(sum.size) { (sum[it] / lot).toFloat() })
            val gradients = manifest.layout.entries.associate { "gradient:${it.name}" to mean.getValue(it.tensor) }
            val fed = gradients + mapOf("learning_rate" to Tensor.scalar(learningRate), "seed" to Tensor.scalar(seed))
            val feeds = fed.mapValues { Runtime.tensor(it.value) }
            try {
                feedBack(graph.run(tensors + feeds))
            } finally {
                feeds.values.forEach { it.close() }
            }
        }

        private fun feedBack(outputs: Map<String, OnnxTensor>) {
            val kept = graph.spec.feedback.map { it.output }.toSet()
            for ((output, input) in graph.spec.feedback) tensors.put(input, outputs.getValue(output))?.close()
            for ((name, value) in outputs) if (name !in kept) value.close()
        }

        /** What is learned, in layout order. */
        fun vector(): FloatArray = manifest.layout.flatten { Runtime.values(tensors.getValue(it)).floats() }

        override fun close(): Unit = tensors.values.forEach { it.close() }
    }
}

private const val ENTROPY_BYTES = 32
private const val SEED_LIMIT = 1L shl 31

/** Share by which rounding may leave a clipped gradient too long; noise is made for that much more. */
private const val CLIP_SLACK = 1.0 / 1024

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
