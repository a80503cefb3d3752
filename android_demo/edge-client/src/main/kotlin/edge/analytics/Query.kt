package edge.analytics

import edge.ArtifactError
import edge.Bytes
import edge.JsonError
import edge.Signing
import edge.asDouble
import edge.asInt
import edge.asList
import edge.asLong
import edge.asObject
import edge.asText
import edge.fromHex
import edge.parseJson
import edge.protocol.BlobRef
import java.security.interfaces.ECPublicKey
import kotlin.math.sqrt

/**
 * A signed question to a fleet: what each device computes from its examples, and how much one device may count.
 *
 * [kind] is "count" (devices and examples), "mean" (of each component of a field), "histogram" or "quantiles" (of a field's
 * numbers) or "evaluate" (loss and accuracy of a model); [field] the examples' field, empty for count and evaluate. Values
 * are clipped to [low] and [high], for evaluate [high] is the largest loss; [bins] are of equal width; [components] the
 * numbers in one row of the field, of which mean gives one mean each; of a device's newest examples no more than [maxRows]
 * count. [model] is for evaluate: the bundle's head, those of its parts that evaluation needs, and last the checkpoint.
 */
internal class Query(
    val kind: String,
    val field: String,
    val low: Double,
    val high: Double,
    val bins: Int,
    val components: Int,
    val maxRows: Int,
    val model: List<BlobRef>,
) {
    /** Numbers in an answer. */
    val dimension: Int
        get() = when (kind) {
            "count" -> 2
            "mean" -> components + 1
            "evaluate" -> 3
            else -> bins
        }

    /** The largest 2-norm of an answer: what one device can move the sum. */
    val normBound: Double get() = if (kind == "histogram" || kind == "quantiles") 1.0 else sqrt(dimension.toDouble())

    private fun check() {
        val asksExamples = kind in setOf("mean", "histogram", "quantiles")
        val problem = when {
            kind !in KINDS -> "its kind is '${kind.take(80)}'"
            !(low < high) || low.isInfinite() || high.isInfinite() -> "it is over [$low, $high]"
            bins !in 1..MOST || components !in 1..MOST || maxRows !in 1..(1 shl 30) -> "its bins, components or rows"
            asksExamples == field.isEmpty() -> "its field is '$field'"
            (kind == "evaluate") != model.isNotEmpty() -> "it names ${model.size} parts of a model"
            kind == "evaluate" && (low != 0.0 || model.size < 2) -> "its losses do not begin at 0, or its model is not whole"
            else -> return
        }
        throw JsonError(problem)
    }

    companion object {
        private val MAGIC = "EDGEQRY1".toByteArray()
        private val DOMAIN = "edge-sdk/query/1\u0000".toByteArray()
        private val HEAD_BYTES = MAGIC.size + 32
        private val PREFIX_BYTES = HEAD_BYTES + Signing.SIGNATURE_BYTES
        private const val BODY_MAX_BYTES = 64 shl 10
        private const val MOST = 4096
        private val KINDS = setOf("count", "mean", "histogram", "quantiles", "evaluate")
        private val FIELDS = setOf("kind", "field", "low", "high", "bins", "components", "max_rows", "model")

        /** Whether these bytes claim to be a query, and no bundle. */
        fun isOne(content: ByteArray): Boolean =
            content.size >= MAGIC.size && MAGIC.indices.all { content[it] == MAGIC[it] }

        /**
         * Authenticates and reads a query.
         *
         * Raises ArtifactError: it is none, was signed by another key, was tampered with, or cannot be understood.
         */
        fun read(content: ByteArray, signer: ECPublicKey): Query {
            if (!isOne(content) || content.size !in PREFIX_BYTES + 1..PREFIX_BYTES + BODY_MAX_BYTES) {
                throw ArtifactError("this is no query", "make one with: edge signer query")
            }
            val head = content.copyOf(HEAD_BYTES)
            val body = content.copyOfRange(PREFIX_BYTES, content.size)
            if (!head.copyOfRange(MAGIC.size, HEAD_BYTES).contentEquals(Signing.keyId(signer))) {
                throw ArtifactError("the query was signed by an unknown key", "have it signed by the pinned signer")
            }
            if (!Signing.verifyRaw(signer, content.copyOfRange(HEAD_BYTES, PREFIX_BYTES), DOMAIN + head + body)) {
                throw ArtifactError("the query was damaged or tampered with", "ask its author for it again")
            }
            try {
                return parse(body.toString(Charsets.UTF_8)).apply { check() }
            } catch (error: JsonError) {
                throw ArtifactError("the query cannot be understood: ${error.message}", "update the SDK in this app", error)
            }
        }

        private fun parse(text: String): Query {
            val fields = parseJson(text).asObject("query")
            if (fields.keys != FIELDS) throw JsonError("it has the fields ${fields.keys}")
            return Query(
                kind = fields.getValue("kind").asText("kind"),
                field = fields.getValue("field").asText("field"),
                low = fields.getValue("low").asDouble("low"),
                high = fields.getValue("high").asDouble("high"),
                bins = fields.getValue("bins").asInt("bins"),
                components = fields.getValue("components").asInt("components"),
                maxRows = fields.getValue("max_rows").asInt("max_rows"),
                model = fields.getValue("model").asList("model").map { part ->
                    val reference = part.asObject("model")
                    val sha256 = reference["sha256"]?.asText("sha256")?.fromHex()
                    val size = reference["size_bytes"]?.asLong("size_bytes")
                    if (sha256?.size != 32 || size == null || size < 0) throw JsonError("a reference to no blob")
                    BlobRef(Bytes(sha256), size)
                },
            )
        }
    }
}
