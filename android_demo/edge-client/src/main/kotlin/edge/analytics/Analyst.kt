package edge.analytics

import edge.ArtifactError
import edge.Bytes
import edge.TrainingError
import edge.protocol.BlobRef
import edge.runtime.Bundle
import edge.training.Artifact
import edge.training.Evaluation
import edge.training.ExampleStore
import edge.training.Schema
import edge.training.Tensor
import java.security.interfaces.ECPublicKey

/** A device's answer to a query, from its examples: a short vector whose norm the query bounds. Pure. */
internal object Answer {
    /** Refuses a query that these examples cannot answer; raises ArtifactError. */
    fun check(query: Query, schema: Schema) {
        if (query.field.isEmpty()) return
        val found = schema[query.field]
            ?: throw ArtifactError("the examples have no field '${query.field}', but ${schema.keys.sorted().joinToString()}")
        val size = found.shape.fold(1) { all, it -> all * it }
        if (query.kind == "mean" && size != query.components) {
            throw ArtifactError("field ${query.field} has $size numbers a row; the query asks for ${query.components}")
        }
    }

    /**
     * The answer from [rows], oldest first: a row weighs 1 / maxRows, and only the newest maxRows count.
     *
     * Raises TrainingError: a value is not finite.
     */
    fun of(query: Query, rows: Map<String, Tensor>): FloatArray {
        val there = rows.values.first().shape[0]
        val count = minOf(there, query.maxRows)
        val share = (count.toDouble() / query.maxRows).toFloat()
        if (query.kind == "count") return floatArrayOf(1f, share)
        val all = rows.getValue(query.field).doubles()
        val width = if (there == 0) 1 else all.size / there
        val sums = DoubleArray(if (query.kind == "mean") query.components else query.bins)
        for (at in (there - count) * width until all.size) {
            val value = all[at]
            if (value.isNaN() || value.isInfinite()) {
                throw TrainingError("field ${query.field} holds NaN or infinity", "drop or repair those examples")
            }
            val unit = (value.coerceIn(query.low, query.high) - query.low) / (query.high - query.low) // into [0, 1]
            // Fields of several numbers a row spread the row's weight over a histogram's bins.
            if (query.kind == "mean") sums[at % width] += unit else sums[minOf((unit * query.bins).toInt(), query.bins - 1)] += 1.0
        }
        if (query.kind == "mean") return FloatArray(sums.size) { (sums[it] / query.maxRows).toFloat() } + share
        return FloatArray(sums.size) { (sums[it] / maxOf(1, width) / query.maxRows).toFloat() }
    }

    /** The answer to an evaluation: mean loss clipped to [0, high], share of right labels and rows, weighted by rows. */
    fun ofEvaluation(query: Query, loss: Double, right: Double?, count: Int): FloatArray {
        val share = minOf(count, query.maxRows).toDouble() / query.maxRows
        val told = loss.coerceIn(0.0, query.high) / query.high
        return floatArrayOf((share * told).toFloat(), (share * (right ?: 0.0)).toFloat(), share.toFloat())
    }
}

/**
 * What a device does with a query: authenticates it, asks whether its owner allows it, and answers from the examples.
 *
 * [signer] is the pinned key that queries must be signed with; [examples] are null on a device that only serves; [allowed]
 * is whether it answers: its answers are clipped, noised and masked like updates.
 */
internal class Analyst(
    private val signer: ECPublicKey,
    private val examples: ExampleStore?,
    private val allowed: Boolean,
) {
    /** What an answer needs beside the examples; raises ArtifactError: not authentic, not allowed, or not to be answered. */
    fun parts(content: ByteArray): List<BlobRef> = query(content).first.model

    /** The answer's dimension; raises as [parts]. */
    fun check(content: ByteArray): Long = query(content).first.dimension.toLong()

    /** The answer, float32 little-endian. Raises as [parts], and TrainingError: the examples cannot be used. */
    fun answer(bundle: Bundle): Bytes {
        val (query, store) = query(bundle.head)
        if (query.kind != "evaluate") {
            val newest = store.snapshot(newest = query.maxRows)
            return Bytes(Tensor.of(Answer.of(query, newest.take((0 until newest.count).toList()))).data)
        }
        val contents = query.model.map(bundle.read)
        val artifact = Artifact.parseHead(contents.first(), signer).withParts(contents.drop(1).dropLast(1))
        // What was never trained on tells how good a model is; where nothing is held out, the others must do.
        val heldOut = if (store.count(heldOut = true) > 0) true else null
        val checkpoint = artifact.manifest.layout.decode(contents.last())
        val found = Evaluation.of(artifact, checkpoint, store.snapshot(heldOut, query.maxRows))
        return Bytes(Tensor.of(Answer.ofEvaluation(query, found.loss, found.accuracy, found.examples)).data)
    }

    private fun query(content: ByteArray): Pair<Query, ExampleStore> {
        val query = Query.read(content, signer)
        if (!allowed) throw ArtifactError("this device answers no queries", "its owner allows them with analytics = true")
        val store = examples ?: throw ArtifactError("this device holds no examples")
        Answer.check(query, store.schema)
        return query to store
    }
}
