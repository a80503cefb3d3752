package edge.training

import edge.ArtifactError
import edge.TrainingError
import java.nio.ByteBuffer
import java.nio.ByteOrder

/** One tensor's place: its `state_dict` name, its shape, and whether it is a parameter or a buffer. */
internal data class LayoutEntry(val name: String, val shape: List<Int>, val role: String) {
    /** Its name in graphs. */
    val tensor: String get() = "$role:$name"

    /** Number of elements. */
    val size: Int get() = shape.fold(1) { size, it -> size * it }
}

/**
 * The one order of what a model learns: named tensors in order, each starting where the one before ends.
 *
 * A checkpoint, an update and an aggregate are all vectors of float32 in this order. Raises ArtifactError: a name twice
 * or empty, or a negative dimension.
 */
internal class Layout(val entries: List<LayoutEntry>) {
    /** Number of elements of the flat vector. */
    val size: Int

    init {
        val names = entries.map { it.name }
        if (names.toSet().size != names.size || "" in names) {
            throw ArtifactError("a layout names a tensor twice, or not at all", "export the model again")
        }
        if (entries.any { entry -> entry.shape.any { it < 0 } }) {
            throw ArtifactError("a layout has a negative dimension", "export the model again")
        }
        size = entries.sumOf { it.size }
    }

    /** Joins tensors, found by their names in graphs, into a new flat vector. */
    fun flatten(tensor: (String) -> FloatArray): FloatArray {
        val vector = FloatArray(size)
        var at = 0
        for (entry in entries) {
            val values = tensor(entry.tensor)
            if (values.size != entry.size) {
                throw TrainingError("${entry.name} has ${values.size} values, the layout says ${entry.shape}")
            }
            values.copyInto(vector, at)
            at += values.size
        }
        return vector
    }

    /** Cuts a flat vector into its tensors, by their names in graphs. */
    fun unflatten(vector: FloatArray): Map<String, Tensor> {
        check(vector, "the vector")
        val tensors = LinkedHashMap<String, Tensor>()
        var at = 0
        for (entry in entries) {
            tensors[entry.tensor] = Tensor.of(vector.copyOfRange(at, at + entry.size), entry.shape)
            at += entry.size
        }
        return tensors
    }

    /** Reads a flat vector from its bytes (float32 little-endian); raises TrainingError: wrong length or not finite. */
    fun decode(content: ByteArray, what: String = "the checkpoint"): FloatArray {
        if (content.size != 4 * size) {
            throw TrainingError(
                "$what has ${content.size} bytes, this model needs ${4 * size}",
                "the checkpoint belongs to another model or version: fetch the one of this bundle",
            )
        }
        val vector = FloatArray(size)
        ByteBuffer.wrap(content).order(ByteOrder.LITTLE_ENDIAN).asFloatBuffer().get(vector)
        check(vector, what)
        return vector
    }

    private fun check(vector: FloatArray, what: String) {
        if (vector.size != size) throw TrainingError("$what has ${vector.size} elements, this model has $size")
        if (vector.any { it.isNaN() || it.isInfinite() }) {
            throw TrainingError("$what holds NaN or infinity", "roll back to the last checkpoint that was finite")
        }
    }

    companion object {
        /** Writes a flat vector as float32 little-endian bytes. */
        fun encode(vector: FloatArray): ByteArray = Tensor.of(vector).data
    }
}
