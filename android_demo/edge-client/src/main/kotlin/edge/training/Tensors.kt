package edge.training

import edge.TrainingError
import java.nio.ByteBuffer
import java.nio.ByteOrder

/** The kinds of numbers that examples and graphs have, by the manifest's names. */
public enum class Dtype(internal val title: String, public val bytes: Int) {
    FLOAT32("float32", 4),
    FLOAT64("float64", 8),
    INT64("int64", 8),
    INT32("int32", 4),
    INT16("int16", 2),
    INT8("int8", 1),
    UINT8("uint8", 1),
    BOOL("bool", 1),
}

/** Numbers of one kind in a shape: their bytes, little-endian, the last dimension varying fastest. */
public class Tensor(public val dtype: Dtype, public val shape: List<Int>, public val data: ByteArray) {
    init {
        if (shape.any { it < 0 } || data.size.toLong() != shape.fold(dtype.bytes.toLong()) { size, it -> size * it }) {
            throw TrainingError("${data.size} bytes are no ${dtype.title}$shape", "give as many values as the shape has")
        }
    }

    /** The values of a tensor of float32. */
    public fun floats(): FloatArray {
        if (dtype != Dtype.FLOAT32) throw TrainingError("a tensor of ${dtype.title} where float32 is needed")
        return FloatArray(data.size / 4).also { view().asFloatBuffer().get(it) }
    }

    /** The values of a tensor of int64. */
    public fun longs(): LongArray {
        if (dtype != Dtype.INT64) throw TrainingError("a tensor of ${dtype.title} where int64 is needed")
        return LongArray(data.size / 8).also { view().asLongBuffer().get(it) }
    }

    /** The values, whatever their kind. */
    internal fun doubles(): DoubleArray {
        val view = view()
        return DoubleArray(data.size / dtype.bytes) {
            when (dtype) {
                Dtype.FLOAT32 -> view.getFloat().toDouble()
                Dtype.FLOAT64 -> view.getDouble()
                Dtype.INT64 -> view.getLong().toDouble()
                Dtype.INT32 -> view.getInt().toDouble()
                Dtype.INT16 -> view.getShort().toDouble()
                Dtype.INT8 -> view.get().toDouble()
                Dtype.UINT8, Dtype.BOOL -> (view.get().toInt() and 0xff).toDouble()
            }
        }
    }

    internal fun view(): ByteBuffer = ByteBuffer.wrap(data).order(ByteOrder.LITTLE_ENDIAN)

    /** Whether there is neither NaN nor infinity: their exponents are all ones. Looks at bits, as every step asks this. */
    internal fun isFinite(): Boolean {
        when (dtype) {
            Dtype.FLOAT32 -> {
                val bits = view().asIntBuffer()
                for (i in 0 until bits.remaining()) if (bits.get(i) and FLOAT_EXPONENT == FLOAT_EXPONENT) return false
            }
            Dtype.FLOAT64 -> {
                val bits = view().asLongBuffer()
                for (i in 0 until bits.remaining()) if (bits.get(i) and DOUBLE_EXPONENT == DOUBLE_EXPONENT) return false
            }
            else -> Unit
        }
        return true
    }

    override fun toString(): String = "Tensor(${dtype.title}$shape)"

    public companion object {
        private const val FLOAT_EXPONENT = 0x7f800000
        private const val DOUBLE_EXPONENT = 0x7ff0000000000000L

        /** A tensor of float32; without a shape, a vector. */
        public fun of(values: FloatArray, shape: List<Int> = listOf(values.size)): Tensor {
            val data = ByteBuffer.allocate(4 * values.size).order(ByteOrder.LITTLE_ENDIAN)
            data.asFloatBuffer().put(values)
            return Tensor(Dtype.FLOAT32, shape, data.array())
        }

        /** A tensor of int64; without a shape, a vector. */
        public fun of(values: LongArray, shape: List<Int> = listOf(values.size)): Tensor {
            val data = ByteBuffer.allocate(8 * values.size).order(ByteOrder.LITTLE_ENDIAN)
            data.asLongBuffer().put(values)
            return Tensor(Dtype.INT64, shape, data.array())
        }

        /** Zeros. */
        public fun zeros(dtype: Dtype, shape: List<Int>): Tensor =
            Tensor(dtype, shape, ByteArray(shape.fold(dtype.bytes) { size, it -> size * it }))

        internal fun scalar(value: Float): Tensor = of(floatArrayOf(value), emptyList())

        internal fun scalar(value: Long): Tensor = of(longArrayOf(value), emptyList())
    }
}
