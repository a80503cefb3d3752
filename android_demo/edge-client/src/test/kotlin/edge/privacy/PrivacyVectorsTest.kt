package edge.privacy

import edge.Inputs
import edge.Json
import edge.JsonText
import edge.LocalProtocolError
import edge.PrivacyError
import edge.RemoteProtocolError
import edge.Vectors
import edge.asDouble
import edge.asObject
import edge.secagg.Coordinator
import edge.secagg.Stream
import edge.secagg.Suite
import java.nio.ByteBuffer
import java.nio.ByteOrder
import kotlin.math.abs
import kotlin.math.sqrt
import org.junit.jupiter.api.DynamicTest
import org.junit.jupiter.api.TestFactory

/** The golden files of the update pipeline: bit for bit, but for epsilons, to 1e-9 relative. */
class PrivacyVectorsTest {
    @TestFactory
    fun encoding(): List<DynamicTest> = Vectors.tests("privacy_encoding.json", operations)

    @TestFactory
    fun noise(): List<DynamicTest> = Vectors.tests("privacy_noise.json", operations)

    @TestFactory
    fun accounting(): List<DynamicTest> = Vectors.tests("privacy_accounting.json", operations, relative = 1e-9)

    private val operations: Map<String, (Inputs) -> Any> = mapOf(
        "clip" to { i -> Clip.clip(floats(i, "values"), i.double("clip_norm")).toList() },
        "block_length" to { i -> Rotate.blockLength(i.int("length")) },
        "hadamard" to { i -> floats(i, "values").also { Rotate.hadamard(it, 0, it.size) } },
        "rotate" to { i -> Rotate.rotate(floats(i, "values"), i.bytes("ctx")) },
        "unrotate" to { i -> unrotate(floats(i, "values").map { it.toDouble() }.toDoubleArray(), i.bytes("ctx")).toList() },
        "stochastic_round" to { i ->
            Quantize.stochasticRound(floats(i, "values"), i.double("scale"), i.double("norm_bound"), i.bytes("entropy"))
        },
        "rounded_norm_bound" to { i -> roundedNormBound(i.double("clip_norm"), i.double("scale"), i.int("length")) },
        "noise_table" to ::tableDigest,
        "noise_entries" to { i ->
            val table = table(i)
            List(2 * table.half) { "%016x%016x".format(table.high[it], table.low[it]) }
        },
        "noise" to { i ->
            Noise.sample(
                Mechanism.valueOf(i.text("mechanism")), i.int("variance").toLong(), i.int("count"), Stream(i.bytes("key")),
            )
        },
        "encode" to { i ->
            val parameters = parameters(i.inputs("parameters"))
            val encoded = Encode.encode(floats(i, "update"), parameters, i.bytes("ctx"), i.bytes("entropy"))
            encoded.map { it.toLong() and 0xffffffffL }
        },
        "decode" to ::decode,
        "epsilon" to { i ->
            val releases = i.list("releases").map { release(Inputs(it.asObject("release"))) to 1L }
            // A release without noise is an error where no policy asks whether it may be infinite.
            releases.forEach { Accounting.renyiDivergences(it.first) }
            Accounting.composedEpsilon(releases, i.double("delta"))
        },
    )

    private fun table(i: Inputs) = Noise.table(Mechanism.valueOf(i.text("mechanism")), i.int("variance").toLong())

    private fun tableDigest(i: Inputs): Any {
        val table = table(i)
        val entries = ByteBuffer.allocate(32 * table.half).order(ByteOrder.LITTLE_ENDIAN)
        for (k in table.high.indices) entries.putLong(table.low[k]).putLong(table.high[k])
        val prefix = ByteBuffer.allocate(4 * table.prefix.size).order(ByteOrder.LITTLE_ENDIAN)
        table.prefix.forEach { prefix.putInt(it) }
        return mapOf(
            "half" to table.half,
            "entries_digest" to Suite.digest(entries.array()),
            "prefix_digest" to Suite.digest(prefix.array()),
        )
    }

    // ---- the coordinator's side

    private fun roundedNormBound(clipNorm: Double, scale: Double, length: Int): Double {
        val scaled = clipNorm * scale
        val root = sqrt(length.toDouble())
        return sqrt(minOf(scaled * scaled + length / 4.0 + scaled + root / 2, (scaled + root) * (scaled + root)))
    }

    private fun unrotate(values: DoubleArray, ctx: ByteArray): DoubleArray {
        val block = Rotate.blockLength(values.size)
        val signs = Rotate.Signs(ctx, 2 * block)
        fun unmix(start: Int, firstSign: Int) {
            val mixed = DoubleArray(block) { i ->
                (0 until block).sumOf { j ->
                    if (Integer.bitCount(i and j) % 2 == 1) -values[start + j] else values[start + j]
                } / sqrt(block.toDouble())
            }
            for (i in 0 until block) values[start + i] = if (signs.isMinus(firstSign + i)) -mixed[i] else mixed[i]
        }
        if (block < values.size) unmix(values.size - block, block)
        unmix(0, 0)
        return values
    }

    private fun decode(i: Inputs): Any {
        val parameters = parameters(i.inputs("parameters"))
        val total = i.ints("total").toIntArray()
        val survivors = i.int("survivors")
        if (total.size != parameters.length || survivors < 1) throw PrivacyError("no such sum")
        val centred = Coordinator.centre(total, parameters.bits)
        if (centred.maxOf { abs(it) } > 31.0 / 32 * (1L shl parameters.bits - 1)) throw RemoteProtocolError("it wrapped")
        val mean = unrotate(centred.map { it.toDouble() }.toDoubleArray(), i.bytes("ctx"))
        val factor = 1 / (parameters.scale * survivors)
        for (k in mean.indices) mean[k] *= factor
        val within = if (parameters.clipBit > 0) (1 + mean.last() / parameters.clipBit) / 2 else null
        return mapOf("mean" to mean.take(parameters.dimension).map { it.toFloat() }, "within" to within)
    }

    private fun parameters(i: Inputs) = EncodingParameters(
        i.int("dimension"), i.int("bits"), number(i["clip_norm"]), number(i["clip_bit"]), number(i["scale"]),
        number(i["norm_bound"]), Mechanism.valueOf(i.text("mechanism")), i.int("device_variance").toLong(),
    )

    private fun release(i: Inputs) = Release(
        Mechanism.valueOf(i.text("mechanism")), i.double("norm_bound"), i.int("length"),
        i.int("device_variance").toLong(), i.int("honest"),
    )

    private fun floats(i: Inputs, name: String): FloatArray {
        val values = i.list(name).map { number(it).toFloat() }.toFloatArray()
        if (values.isEmpty()) throw LocalProtocolError("no values")
        return values
    }

    private fun number(value: Json): Double = when ((value as? JsonText)?.value) {
        null -> value.asDouble("number")
        "nan" -> Double.NaN
        "inf" -> Double.POSITIVE_INFINITY
        else -> Double.NEGATIVE_INFINITY
    }
}
