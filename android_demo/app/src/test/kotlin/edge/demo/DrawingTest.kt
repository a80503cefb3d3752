package edge.demo

import org.junit.jupiter.api.Assertions.assertArrayEquals
import org.junit.jupiter.api.Assertions.assertEquals
import org.junit.jupiter.api.Assertions.assertNull
import org.junit.jupiter.api.Assertions.assertTrue
import org.junit.jupiter.api.Test

class DrawingTest {
    private fun line(vararg points: Pair<Double, Double>): Drawing =
        points.fold(Drawing()) { drawing, (x, y) -> drawing.continued(Point(x.toFloat(), y.toFloat())) }

    private fun ink(pixels: FloatArray): Double = pixels.sumOf { (it / 3.0 + 0.5) * 16 }

    @Test
    fun `an empty drawing has no pixels`() {
        assertNull(Drawing().pixels())
    }

    @Test
    fun `a vertical line fills its columns from top to bottom and nothing else`() {
        val pixels = line(0.5 to 0.1, 0.5 to 0.9).pixels()!!
        assertEquals(64, pixels.size)
        for (row in 0 until 8) {
            for (column in 0 until 8) {
                val value = pixels[row * 8 + column]
                if (column !in 3..4) assertEquals(-1.5f, value) { "row $row, column $column" }
                if (column in 3..4 && row in 1..6) assertTrue(value >= 0f) { "row $row, column $column: $value" }
            }
        }
    }

    @Test
    fun `where and how large it was drawn does not matter`() {
        val small = line(0.1 to 0.1, 0.2 to 0.15, 0.15 to 0.3).pixels()!!
        val large = line(0.2 to 0.1, 0.6 to 0.3, 0.4 to 0.9).pixels()!!
        assertArrayEquals(small, large, 0.2f)
    }

    @Test
    fun `a tap is a dot in the middle, not a blot`() {
        val pixels = line(0.9 to 0.9).pixels()!!
        assertTrue(ink(pixels) in 16.0..36.0) { "ink ${ink(pixels)}" }
        assertEquals(-1.5f, pixels[0])
    }

    @Test
    fun `strokes are separate`() {
        val two = line(0.0 to 0.0, 0.0 to 1.0).begun(Point(1f, 0f)).continued(Point(1f, 1f))
        val between = two.pixels()!!.filterIndexed { index, _ -> index % 8 in 2..5 }
        assertTrue(between.all { it == -1.5f })
    }

    @Test
    fun `values stay in the model's range and a digit has about as much ink as the data set's`() {
        val pixels = Shapes.digits.map { it.pixels()!! }
        assertTrue(pixels.all { image -> image.all { it in -1.5f..1.5f } })
        // The data set's mean is 312 of 1,024.
        val mean = pixels.map(::ink).average()
        assertTrue(mean in 250.0..370.0) { "mean ink $mean" }
    }
}
