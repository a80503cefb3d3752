package edge.training

import edge.ArtifactError
import edge.Json
import edge.JsonError
import edge.JsonNull
import edge.asDouble
import edge.asInt
import edge.asList
import edge.asLong
import edge.asObject
import edge.asText
import edge.parseJson
import edge.privacy.Sampling

/** One input or output of a graph; a dimension of null is the batch. */
internal data class TensorSpec(val name: String, val role: String, val dtype: Dtype, val shape: List<Int?>) {
    /** The shape of one row. */
    val row: List<Int> get() = shape.drop(1).map { it ?: 0 }

    /** The shape with what is no number 0: of tensors whose shape is fixed. */
    val fixed: List<Int> get() = shape.map { it ?: 0 }

    val rowBytes: Int get() = row.fold(dtype.bytes) { size, it -> size * it }

    val fixedBytes: Int get() = fixed.fold(dtype.bytes) { size, it -> size * it }
}

/** After a step, output [output] becomes input [input]. */
internal data class Feedback(val output: String, val input: String)

/** One graph: its tensors in order, whatever the format. */
internal class GraphSpec(
    val kind: String,
    val inputs: List<TensorSpec>,
    val outputs: List<TensorSpec>,
    val feedback: List<Feedback>,
) {
    /** The name of the part that holds it for ONNX Runtime. */
    val part: String get() = "$kind.onnx"

    /** Whether some input has that role. */
    fun takes(role: String): Boolean = inputs.any { it.role == role }
}

/** The promise that training hides each example of a device, from whoever gets the update. */
internal class ExamplePrivacy(val clipNorm: Double, val noiseMultiplier: Double, val lotSize: Int) {
    /** Chance of each of so many examples to be in a step's sample: on average the lot size, or all if there are fewer. */
    fun rate(examples: Int): Double = minOf(1.0, lotSize.toDouble() / examples)

    /** Steps of a plan: so many that each example is drawn once an epoch on average, at most the plan's cap. */
    fun steps(plan: TrainingPlan, examples: Int): Long =
        minOf(plan.epochs * ((examples + lotSize - 1) / lotSize), plan.maxSteps)

    /** What training by a plan releases of each of so many examples. */
    fun sampling(plan: TrainingPlan, examples: Int): Sampling =
        Sampling(noiseMultiplier, rate(examples), steps(plan, examples))
}

/** How many examples a step takes. */
internal class BatchRange(val minimum: Int, val maximum: Int)

/** One step of the parity vector: its batch size, learning rate, seed and expected loss. */
internal class ParityStep(
    val batch: Int,
    val learningRate: Float,
    val seed: Long,
    val loss: Double,
    val lossTolerance: Double,
)

/** About how much memory training takes: a sum for the batch's size, and at least so much. */
internal class Memory(private val leastBytes: Long, private val fixedBytes: Long, private val exampleBytes: Long) {
    /** On batches of that many examples. */
    fun predictedBytes(batch: Int): Long = maxOf(leastBytes, fixedBytes + exampleBytes * batch)
}

/** Where a part lies, and its SHA-256 in hexadecimal. */
internal class PartSpec(val name: String, val offset: Long, val sizeBytes: Long, val sha256: String)

/** Everything about a bundle but its parts' bytes, as far as a device that trains with ONNX Runtime needs it. */
internal class Manifest(
    val name: String,
    val version: String,
    val layout: Layout,
    val frozen: List<TensorSpec>,
    val inputs: List<TensorSpec>,
    val target: TensorSpec,
    val output: TensorSpec,
    val lossIsSum: Boolean,
    val memory: Memory,
    val classes: Long?,
    val ignoredLabel: Long?,
    val privacy: ExamplePrivacy?,
    val oldestRuntime: String,
    val batch: BatchRange,
    val graphs: List<GraphSpec>,
    val parityStride: Int,
    val parity: List<ParityStep>,
    val parts: List<PartSpec>,
) {
    /** The graph of a kind; a checked manifest has one of each that is needed. */
    fun graph(kind: String): GraphSpec = graphs.first { it.kind == kind }

    /** The part of that name; raises ArtifactError where there is none. */
    fun part(name: String): PartSpec = parts.find { it.name == name } ?: malformed("it has no part '$name'")

    /** The part of frozen parameters, if there are any: every graph may read it. */
    val frozenParts: List<String> get() = if (frozen.isEmpty()) emptyList() else listOf(FROZEN_PART)

    /** Refuses a manifest whose fields contradict each other. */
    fun check() {
        if (parts.map { it.name }.toSet().size != parts.size) malformed("two parts have one name")
        val kinds = graphs.map { it.kind }.sorted()
        val some = listOf("evaluate", "infer", "train")
        val allowed = if (privacy != null) listOf(listOf("clip") + some) else listOf(some, (some + "gradient").sorted())
        if (kinds !in allowed) malformed("it does not have the graphs that it must have")
        if (!(batch.minimum >= 1 && batch.minimum <= batch.maximum)) malformed("its batch range is empty")
        if (layout.size == 0) malformed("it has nothing to train")
        if (part(CHECKPOINT_PART).sizeBytes != 4L * layout.size) malformed("its checkpoint has not the layout's size")
        if (frozen.isNotEmpty() && part(FROZEN_PART).sizeBytes != frozen.sumOf { it.fixedBytes.toLong() }) {
            malformed("its frozen part has not the size of its tensors")
        }
        if (frozen.any { it.role != "frozen" || null in it.shape }) malformed("its frozen part holds something else")
        for (graph in graphs) {
            part(graph.part)
            check(graph)
        }
        checkPrivacy()
        checkParity()
    }

    /** The examples must have no way into the update but through the sum of their clipped gradients. */
    private fun checkPrivacy() {
        val wanted = if (privacy == null) emptyList() else layout.entries.map { "gradient:${it.name}" to it.shape }
        fun gradients(tensors: List<TensorSpec>) =
            tensors.filter { it.role == "gradient" && it.dtype == Dtype.FLOAT32 }.map { it.name to it.shape }
        if (privacy != null) {
            val clip = graph("clip")
            if (layout.entries.any { it.role == "buffer" }) malformed("it is private for each example, but learns buffers")
            if (!(clip.takes("weight") && clip.takes("clip_norm") && clip.takes("input")) ||
                gradients(clip.outputs) != wanted || clip.outputs.none { it.name == "loss" }
            ) {
                malformed("its clip graph does not weight and clip examples, or not for each parameter")
            }
        }
        if (gradients(graph("train").inputs) != wanted) malformed("its train graph does not take the gradients that it should")
    }

    private fun check(graph: GraphSpec) {
        val learned = graph.inputs.filter { it.role == "parameter" || it.role == "buffer" }
        val expected = layout.entries.map { TensorSpec(it.tensor, it.role, Dtype.FLOAT32, it.shape) }
        // A graph may not need every parameter (one that acts in training only), but it keeps their order.
        if (learned != expected.filter { it in learned }) malformed("graph ${graph.kind} does not follow the layout")
        if (graph.kind == "train" && learned != expected) malformed("the train graph lacks a parameter")
        val known = frozen + inputs + target
        for (tensor in graph.inputs) {
            if (tensor.role in setOf("frozen", "input", "target") && tensor !in known) {
                malformed("graph ${graph.kind} takes ${tensor.name}, which is no field of examples and not frozen")
            }
        }
        for (pair in graph.feedback) {
            val source = graph.outputs.find { it.name == pair.output }
            val target = graph.inputs.find { it.name == pair.input }
            if (source == null || target == null || source.shape != target.shape || source.role != target.role) {
                malformed("feedback ${pair.output} -> ${pair.input} does not fit")
            }
        }
        if (graph.kind == "train") {
            val state = graph.inputs.filter { it.role in setOf("parameter", "buffer", "slot") }.map { it.name }
            if (graph.feedback.map { it.input }.sorted() != state.sorted()) {
                malformed("the train graph does not feed back every parameter, buffer and slot once")
            }
            if (privacy == null && graph.outputs.none { it.role == "loss" && it.name == "loss" }) {
                malformed("the train graph has no loss")
            }
            if (privacy != null && (graph.takes("input") || graph.takes("target"))) {
                malformed("it is private for each example, but its train graph takes examples")
            }
        }
    }

    private fun checkParity() {
        if (parityStride < 1 || parity.isEmpty()) malformed("its parity vector is empty")
        val sampled = (layout.size + parityStride - 1) / parityStride
        val row = (inputs + target).sumOf { it.rowBytes.toLong() }
        if (part(PARITY_PART).sizeBytes != parity.sumOf { row * it.batch + 8L * sampled }) {
            malformed("its parity vector has not the size that its steps need")
        }
        if (parity.any { it.batch < batch.minimum || it.batch > batch.maximum || !(it.lossTolerance > 0) }) {
            malformed("its parity vector has steps that the model does not take")
        }
    }

    companion object {
        const val CHECKPOINT_PART: String = "checkpoint"
        const val FROZEN_PART: String = "frozen"
        const val PARITY_PART: String = "parity"

        fun malformed(why: String): Nothing =
            throw ArtifactError("the bundle's manifest is malformed: $why", "export the model again")

        /**
         * Reads a manifest (UTF-8 JSON) from bytes that are authentic already, and checks that it makes sense.
         *
         * Raises ArtifactError: not JSON, a field missing, unknown or of the wrong type, or a contradiction.
         */
        fun decode(content: ByteArray): Manifest {
            val manifest = try {
                ManifestReader.manifest(parseJson(content.toString(Charsets.UTF_8)))
            } catch (error: JsonError) {
                malformed(error.message.orEmpty())
            }
            manifest.check()
            return manifest
        }
    }
}

/** The records of a manifest from JSON: all of their fields must be there and no others. */
private object ManifestReader {
    private val ROLES = setOf(
        "parameter", "buffer", "frozen", "slot", "input", "target", "learning_rate", "seed", "proximal", "correction",
        "weight", "clip_norm", "gradient", "loss", "output",
    )

    fun manifest(json: Json): Manifest {
        val fields = record(
            json, "manifest",
            "name", "version", "layout", "frozen", "inputs", "target", "output", "classes", "ignored_label", "loss",
            "optimizer", "privacy", "batch", "graphs", "memory", "formats", "tools", "parity", "parts",
        )
        val loss = record(fields.getValue("loss"), "loss", "name", "reduction")
        record(fields.getValue("optimizer"), "optimizer", "kind", "hyperparameters", "slots", "default_learning_rate")
        val memory = record(fields.getValue("memory"), "memory", "least_bytes", "fixed_bytes", "example_bytes")
            .mapValues { it.value.asLong(it.key) }
        val (oldest, batch) = onnx(fields.getValue("formats"))
        val parity = record(fields.getValue("parity"), "parity", "stride", "steps")
        return Manifest(
            name = fields.getValue("name").asText("name"),
            version = fields.getValue("version").asText("version"),
            layout = layout(fields.getValue("layout")),
            frozen = fields.getValue("frozen").asList("frozen").map(::tensor),
            inputs = fields.getValue("inputs").asList("inputs").map(::tensor),
            target = tensor(fields.getValue("target")),
            output = tensor(fields.getValue("output")),
            lossIsSum = loss.getValue("reduction").asText("reduction") == "sum",
            memory = Memory(memory.getValue("least_bytes"), memory.getValue("fixed_bytes"), memory.getValue("example_bytes")),
            classes = optional(fields.getValue("classes"))?.asLong("classes"),
            ignoredLabel = optional(fields.getValue("ignored_label"))?.asLong("ignored_label"),
            privacy = optional(fields.getValue("privacy"))?.let(::privacy),
            oldestRuntime = oldest,
            batch = batch,
            graphs = fields.getValue("graphs").asList("graphs").map(::graph),
            parityStride = parity.getValue("stride").asInt("stride"),
            parity = parity.getValue("steps").asList("steps").map(::parityStep),
            parts = fields.getValue("parts").asList("parts").map(::part),
        )
    }

    /** The oldest ONNX Runtime that runs the graphs, and the batches that they take there. */
    private fun onnx(json: Json): Pair<String, BatchRange> {
        for (format in json.asList("formats")) {
            val fields =
                record(format, "format", "name", "oldest", "opset", "ir_version", "operators", "batch", "replay")
            if (fields.getValue("name").asText("name") == "onnx") {
                return fields.getValue("oldest").asText("oldest") to batch(fields.getValue("batch"))
            }
        }
        throw JsonError("it has not the format onnx")
    }

    private fun batch(json: Json): BatchRange {
        val fields = record(json, "batch", "minimum", "maximum")
        return BatchRange(fields.getValue("minimum").asInt("minimum"), fields.getValue("maximum").asInt("maximum"))
    }

    private fun layout(json: Json): Layout {
        val entries = record(json, "layout", "entries").getValue("entries").asList("entries").map { entry ->
            val fields = record(entry, "layout entry", "name", "shape", "role")
            val role = fields.getValue("role").asText("role")
            if (role != "parameter" && role != "buffer") throw JsonError("a layout entry is a '$role'")
            val shape = fields.getValue("shape").asList("shape").map { it.asInt("dimension") }
            LayoutEntry(fields.getValue("name").asText("name"), shape, role)
        }
        return Layout(entries)
    }

    private fun tensor(json: Json): TensorSpec {
        val fields = record(json, "tensor", "name", "role", "dtype", "shape")
        val name = fields.getValue("name").asText("name")
        val role = fields.getValue("role").asText("role")
        if (role !in ROLES) throw JsonError("$name has the unknown role '$role'")
        val title = fields.getValue("dtype").asText("dtype")
        val dtype = Dtype.values().find { it.title == title } ?: throw JsonError("$name has unknown dtype '$title'")
        val shape = fields.getValue("shape").asList("shape").map { optional(it)?.asInt("dimension") }
        if (shape.any { it != null && it < 0 }) throw JsonError("$name has a negative dimension")
        return TensorSpec(name, role, dtype, shape)
    }

    private fun graph(json: Json): GraphSpec {
        val fields = record(json, "graph", "kind", "inputs", "outputs", "feedback")
        val inputs = fields.getValue("inputs").asList("inputs").map(::tensor)
        val outputs = fields.getValue("outputs").asList("outputs").map(::tensor)
        for (tensors in listOf(inputs, outputs)) {
            if (tensors.map { it.name }.toSet().size != tensors.size) throw JsonError("a graph names a tensor twice")
        }
        val feedback = fields.getValue("feedback").asList("feedback").map { pair ->
            val names = record(pair, "feedback", "output", "input")
            Feedback(names.getValue("output").asText("output"), names.getValue("input").asText("input"))
        }
        return GraphSpec(fields.getValue("kind").asText("kind"), inputs, outputs, feedback)
    }

    private fun privacy(json: Json): ExamplePrivacy {
        val fields = record(json, "privacy", "unit", "sampling", "clip_norm", "noise_multiplier", "lot_size")
        val found = ExamplePrivacy(
            fields.getValue("clip_norm").asDouble("clip_norm"),
            fields.getValue("noise_multiplier").asDouble("noise_multiplier"),
            fields.getValue("lot_size").asInt("lot_size"),
        )
        if (!(found.clipNorm > 0 && found.noiseMultiplier > 0 && found.lotSize > 0)) {
            throw JsonError("its clip norm, noise multiplier or lot size is not positive")
        }
        return found
    }

    private fun parityStep(json: Json): ParityStep {
        val fields = record(json, "parity step", "batch", "learning_rate", "seed", "loss", "loss_tolerance")
        return ParityStep(
            fields.getValue("batch").asInt("batch"),
            fields.getValue("learning_rate").asDouble("learning_rate").toFloat(),
            fields.getValue("seed").asLong("seed"),
            fields.getValue("loss").asDouble("loss"),
            fields.getValue("loss_tolerance").asDouble("loss_tolerance"),
        )
    }

    private fun part(json: Json): PartSpec {
        val fields = record(json, "part", "name", "offset", "size_bytes", "sha256")
        val sha256 = fields.getValue("sha256").asText("sha256")
        if (!Regex("[0-9a-f]{64}").matches(sha256)) throw JsonError("a part's SHA-256 is none")
        return PartSpec(
            fields.getValue("name").asText("name"),
            fields.getValue("offset").asLong("offset"),
            fields.getValue("size_bytes").asLong("size_bytes"),
            sha256,
        )
    }

    private fun optional(json: Json): Json? = if (json === JsonNull) null else json

    private fun record(json: Json, what: String, vararg names: String): Map<String, Json> {
        val fields = json.asObject(what)
        val odd = (fields.keys - names.toSet()) + (names.toSet() - fields.keys)
        if (odd.isNotEmpty()) throw JsonError("$what lacks or does not know ${odd.sorted().joinToString(", ")}")
        return fields
    }
}
