package edge.demo

import ai.onnxruntime.OnnxTensor
import ai.onnxruntime.OrtEnvironment
import ai.onnxruntime.OrtException
import ai.onnxruntime.OrtSession
import edge.ArtifactError
import java.io.Closeable
import java.nio.ByteBuffer
import java.nio.ByteOrder
import java.nio.FloatBuffer
import java.security.GeneralSecurityException
import java.security.KeyFactory
import java.security.MessageDigest
import java.security.PublicKey
import java.security.Signature
import java.security.spec.X509EncodedKeySpec
import org.json.JSONException
import org.json.JSONObject

/** What a signed bundle (see `edge_sdk/training/artifact.py`) holds that predicting needs. */
class BundledModel private constructor(
    private val graph: ByteArray,
    private val tensors: Map<String, Tensor>,
    private val input: String,
) {
    private class Tensor(val shape: LongArray, val values: FloatArray)

    /** Load the graph on ONNX Runtime, single-threaded. @throws ArtifactError the runtime cannot. */
    fun open(environment: OrtEnvironment): Predicting = try {
        val options = OrtSession.SessionOptions()
        options.setIntraOpNumThreads(1)
        options.setInterOpNumThreads(1)
        Predicting(environment, environment.createSession(graph, options))
    } catch (error: OrtException) {
        throw ArtifactError("ONNX Runtime cannot load the model: ${error.message}", "install a newer app", error)
    }

    /** The model, open. */
    inner class Predicting(private val environment: OrtEnvironment, private val session: OrtSession) : Closeable {
        private val parameters = tensors.mapValues { (_, tensor) ->
            OnnxTensor.createTensor(environment, FloatBuffer.wrap(tensor.values), tensor.shape)
        }

        /** The logits for one drawing. */
        fun predict(pixels: FloatArray): FloatArray {
            val side = Drawing.SIDE.toLong()
            OnnxTensor.createTensor(environment, FloatBuffer.wrap(pixels), longArrayOf(1, 1, side, side)).use { image ->
                session.run(parameters + (input to image)).use { output ->
                    val logits = (output[0] as OnnxTensor).floatBuffer
                    return FloatArray(logits.remaining()).also { logits.get(it) }
                }
            }
        }

        override fun close() {
            parameters.values.forEach { it.close() }
            session.close()
        }
    }

    companion object {
        private const val PREFIX_BYTES = 112
        private const val SIGNATURE_AT = 48
        private const val ALIGNMENT = 64

        /**
         * Verify a bundle and read it.
         *
         * @param signer the publisher's public key, SubjectPublicKeyInfo in DER.
         * @throws ArtifactError it is no bundle, was signed by somebody else, or changed.
         */
        fun read(content: ByteArray, signer: ByteArray): BundledModel = try {
            val head = ByteBuffer.wrap(content).order(ByteOrder.LITTLE_ENDIAN)
            if (content.size < PREFIX_BYTES || String(content, 0, 8) != "EDGEBNDL") throw damaged("its header")
            val end = PREFIX_BYTES + head.getInt(12)
            if (end < PREFIX_BYTES || end > content.size) throw damaged("its manifest")
            if (!MessageDigest.isEqual(content.copyOfRange(16, 48), sha256(signer))) throw damaged("its signer")
            val key = KeyFactory.getInstance("EC").generatePublic(X509EncodedKeySpec(signer))
            val manifest = content.copyOfRange(PREFIX_BYTES, end)
            if (!isSigned(key, content.copyOfRange(SIGNATURE_AT, PREFIX_BYTES), content.copyOf(SIGNATURE_AT) + manifest)) {
                throw damaged("its signature")
            }
            parsed(JSONObject(String(manifest)), content, (end + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT)
        } catch (error: JSONException) {
            throw ArtifactError("the bundle's manifest cannot be read: ${error.message}", "install a newer app", error)
        } catch (error: GeneralSecurityException) {
            throw ArtifactError("the bundle's signature cannot be checked: $error", "install the app again", error)
        }

        private fun parsed(manifest: JSONObject, content: ByteArray, start: Int): BundledModel {
            val parts = manifest.getJSONArray("parts").let { list -> List(list.length()) { list.getJSONObject(it) } }
            fun part(name: String): ByteArray {
                val spec = parts.first { it.getString("name") == name }
                val from = start + spec.getInt("offset")
                val bytes = content.copyOfRange(from, from + spec.getInt("size_bytes"))
                val hash = sha256(bytes).joinToString("") { "%02x".format(it) }
                if (hash != spec.getString("sha256")) throw damaged("part $name")
                return bytes
            }
            val graphs = manifest.getJSONArray("graphs").let { list -> List(list.length()) { list.getJSONObject(it) } }
            val graph = graphs.first { it.getString("kind") == "infer" }
            val inputs = graph.getJSONArray("inputs").let { list -> List(list.length()) { list.getJSONObject(it) } }
            val values = ByteBuffer.wrap(part("checkpoint")).order(ByteOrder.LITTLE_ENDIAN).asFloatBuffer()
            val entries = manifest.getJSONObject("layout").getJSONArray("entries")
            val tensors = (0 until entries.length()).map { entries.getJSONObject(it) }.associate { entry ->
                val dimensions = entry.getJSONArray("shape")
                val shape = LongArray(dimensions.length()) { dimensions.getLong(it) }
                val tensor = FloatArray(shape.fold(1L, Long::times).toInt()).also { values.get(it) }
                "${entry.getString("role")}:${entry.getString("name")}" to Tensor(shape, tensor)
            }
            val used = inputs.map { it.getString("name") }.toSet()
            return BundledModel(
                part(graph.getString("part")),
                tensors.filterKeys { it in used },
                inputs.first { it.getString("role") == "input" }.getString("name"),
            )
        }

        private fun isSigned(key: PublicKey, raw: ByteArray, message: ByteArray): Boolean =
            Signature.getInstance("SHA256withECDSA").run {
                initVerify(key)
                update(message)
                verify(der(raw))
            }

        /** r||s as DER, which Java's providers want. */
        private fun der(raw: ByteArray): ByteArray {
            val numbers = listOf(raw.copyOf(32), raw.copyOfRange(32, 64)).map {
                val bytes = java.math.BigInteger(1, it).toByteArray()
                byteArrayOf(2, bytes.size.toByte()) + bytes
            }
            return byteArrayOf(0x30, numbers.sumOf { it.size }.toByte()) + numbers[0] + numbers[1]
        }

        private fun sha256(bytes: ByteArray) = MessageDigest.getInstance("SHA-256").digest(bytes)

        private fun damaged(what: String) =
            ArtifactError("the bundle was damaged, or is not from the publisher: $what does not match", "install the app again")
    }
}

/** A [DigitModel] from a bundle, loaded on first use; it says why where it cannot. */
class OrtDigits(private val load: () -> BundledModel) : DigitModel {
    private val opened: Result by lazy(::open)

    override val version: Int? get() = if (opened.predicting == null) null else 0

    override val problem: ModelProblem? get() = opened.problem

    override fun predict(pixels: FloatArray): FloatArray? = opened.predicting?.predict(pixels)

    private class Result(val predicting: BundledModel.Predicting?, val problem: ModelProblem?)

    private fun open(): Result = try {
        Result(load().open(OrtEnvironment.getEnvironment()), null)
    } catch (_: ArtifactError) {
        Result(null, ModelProblem.BAD_MODEL)
    } catch (_: LinkageError) {
        // The native library is not in this build, or not for this processor.
        Result(null, ModelProblem.NO_RUNTIME)
    }
}
