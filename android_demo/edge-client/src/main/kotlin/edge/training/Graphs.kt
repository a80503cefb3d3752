package edge.training

import ai.onnxruntime.OnnxJavaType
import ai.onnxruntime.OnnxTensor
import ai.onnxruntime.OnnxValue
import ai.onnxruntime.OrtEnvironment
import ai.onnxruntime.OrtException
import ai.onnxruntime.OrtSession
import edge.ArtifactError
import edge.TrainingError
import java.io.Closeable
import java.nio.ByteBuffer
import java.nio.ByteOrder

/** What runs the graphs of a bundle: ONNX Runtime. Foreign exceptions end here. */
internal object Runtime {
    val environment: OrtEnvironment by lazy { OrtEnvironment.getEnvironment() }

    /** Such as "onnxruntime 1.29.0". */
    val name: String get() = "onnxruntime ${environment.version}"

    /** Refuses a bundle that needs a newer runtime. */
    fun check(oldest: String) {
        if (compare(numbers(environment.version), numbers(oldest)) < 0) {
            throw ArtifactError(
                "the bundle needs ONNX Runtime $oldest, this device has ${environment.version}",
                "update the runtime in this app",
            )
        }
    }

    /** A tensor of the runtime's with a copy of these values, to be closed by its owner. */
    fun tensor(tensor: Tensor): OnnxTensor {
        val data = ByteBuffer.allocateDirect(tensor.data.size).order(ByteOrder.nativeOrder())
        data.put(tensor.data)
        data.flip()
        val shape = LongArray(tensor.shape.size) { tensor.shape[it].toLong() }
        return guarded("take a tensor") { OnnxTensor.createTensor(environment, data, shape, typeOf(tensor.dtype)) }
    }

    /** The values of a tensor of the runtime's. */
    fun values(value: OnnxTensor): Tensor {
        val info = value.info
        val dtype = Dtype.values().find { typeOf(it) == info.type } ?: throw TrainingError("an output of type ${info.type}")
        val data = guarded("give a tensor") { value.byteBuffer }
        return Tensor(dtype, info.shape.map { it.toInt() }, ByteArray(data.remaining()).also { data.get(it) })
    }

    inline fun <T> guarded(what: String, action: () -> T): T = try {
        action()
    } catch (error: OrtException) {
        throw TrainingError(
            "ONNX Runtime could not $what: ${error.message}",
            "check that the examples are like those the model was exported for",
            error,
        )
    }

    /** What is wrong with a bundle whose graph does not load; an operator that this runtime lacks is named. */
    fun cannotLoad(kind: String, error: OrtException): ArtifactError {
        val operator = LACKING.firstNotNullOfOrNull { it.find(error.message.orEmpty()) }?.groupValues?.get(1)
        return if (operator != null) {
            ArtifactError(
                "the $kind graph needs the operator $operator, which $name on this device does not have",
                "update the runtime in this app, or export the model without this operator",
                error,
            )
        } else {
            ArtifactError("ONNX Runtime cannot load the $kind graph: ${error.message}", "export the model again", error)
        }
    }

    /** How the runtime says that it has no such operator: at all, in that version, or on this processor for these types. */
    private val LACKING = listOf(
        Regex("([\\w.:]+)\\(-?\\d+\\) is not a registered function/op"),
        Regex("No Op registered for (\\S+) with domain_version"),
        Regex("Could not find an implementation for ([\\w.:]+)\\("),
    )

    private fun typeOf(dtype: Dtype): OnnxJavaType = when (dtype) {
        Dtype.FLOAT32 -> OnnxJavaType.FLOAT
        Dtype.FLOAT64 -> OnnxJavaType.DOUBLE
        Dtype.INT64 -> OnnxJavaType.INT64
        Dtype.INT32 -> OnnxJavaType.INT32
        Dtype.INT16 -> OnnxJavaType.INT16
        Dtype.INT8 -> OnnxJavaType.INT8
        Dtype.UINT8 -> OnnxJavaType.UINT8
        Dtype.BOOL -> OnnxJavaType.BOOL
    }

    private fun numbers(version: String): List<Int> =
        Regex("[0-9]+").findAll(version).map { it.value.toIntOrNull() ?: Int.MAX_VALUE }.take(3).toList()

    private fun compare(left: List<Int>, right: List<Int>): Int {
        for (i in 0 until maxOf(left.size, right.size)) {
            val difference = (left.getOrNull(i) ?: 0).compareTo(right.getOrNull(i) ?: 0)
            if (difference != 0) return difference
        }
        return 0
    }
}

/** One graph of a bundle, open, with the frozen parameters that it is always fed. */
internal class OpenGraph(artifact: Artifact, kind: String, threads: Int = 1) : Closeable {
    val spec: GraphSpec = artifact.manifest.graph(kind)
    private val session: OrtSession
    private val constants: Map<String, OnnxTensor>

    init {
        Runtime.check(artifact.manifest.oldestRuntime)
        val content = artifact.part(spec.part)
        session = try {
            OrtSession.SessionOptions().use { options ->
                // One thread by default: a phone has other work, and results do not depend on how many there are.
                options.setIntraOpNumThreads(threads)
                options.setInterOpNumThreads(1)
                Runtime.environment.createSession(content, options)
            }
        } catch (error: OrtException) {
            throw Runtime.cannotLoad(kind, error)
        }
        val frozen = artifact.frozen()
        constants = spec.inputs.filter { it.role == "frozen" }
            .associate { it.name to Runtime.tensor(frozen.getValue(it.name)) }
    }

    /** Runs with those of the feeds that the graph takes; its outputs by name, to be closed by the caller. */
    fun run(feeds: Map<String, OnnxTensor>): Map<String, OnnxTensor> {
        val taken = spec.inputs.associate { input ->
            input.name to (constants[input.name] ?: feeds[input.name]
                ?: throw TrainingError("the ${spec.kind} graph takes ${input.name}, which nothing gives"))
        }
        val wanted = spec.outputs.map { it.name }.toSet()
        val result = Runtime.guarded("run the ${spec.kind} graph") { session.run(taken, wanted) }
        return result.associate { (name, value: OnnxValue) ->
            name to (value as? OnnxTensor ?: throw TrainingError("$name is no tensor"))
        }
    }

    override fun close() {
        constants.values.forEach { it.close() }
        session.close()
    }
}
