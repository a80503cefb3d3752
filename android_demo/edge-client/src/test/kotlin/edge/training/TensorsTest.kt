package edge.training

import java.nio.ByteBuffer
import java.nio.ByteOrder
import org.junit.jupiter.api.Assertions.assertEquals
import org.junit.jupiter.api.Assertions.assertTrue
import org.junit.jupiter.api.Test

class TensorsTest {
    private fun doubles(vararg values: Double): Tensor {
        val data = ByteBuffer.allocate(8 * values.size).order(ByteOrder.LITTLE_ENDIAN)
        values.forEach(data::putDouble)
        return Tensor(Dtype.FLOAT64, listOf(values.size), data.array())
    }

    @Test
    fun `finite is what is neither infinite nor no number`() {
        val finite = floatArrayOf(0f, -0f, 1e-45f, -1.5f, Float.MAX_VALUE, -Float.MAX_VALUE)
        assertTrue(Tensor.of(finite).isFinite())
        for (odd in listOf(Float.NaN, Float.POSITIVE_INFINITY, Float.NEGATIVE_INFINITY, Float.fromBits(0x7f800001))) {
            for (at in finite.indices) {
                assertEquals(false, Tensor.of(finite.copyOf().also { it[at] = odd }).isFinite()) { "$odd at $at" }
            }
        }
        assertTrue(doubles(0.0, 5e-324, Double.MAX_VALUE, -Double.MAX_VALUE).isFinite())
        for (odd in listOf(Double.NaN, Double.POSITIVE_INFINITY, Double.NEGATIVE_INFINITY)) {
            assertEquals(false, doubles(1.0, odd).isFinite()) { "$odd" }
        }
        assertTrue(Tensor.of(longArrayOf(-1, Long.MIN_VALUE)).isFinite())
    }
}
