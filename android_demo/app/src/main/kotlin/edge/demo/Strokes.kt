package edge.demo

import kotlin.math.ceil
import kotlin.math.floor
import kotlin.math.max
import kotlin.math.min

/** A place on the drawing pad: 0 to 1 from the top, and as large a unit from the left of the square in its middle. */
data class Point(val x: Float, val y: Float)

/** What a finger has drawn: strokes of points, in order. Immutable. */
data class Drawing(val strokes: List<List<Point>> = emptyList()) {
    val isEmpty: Boolean get() = strokes.isEmpty()

    /** The finger came down. */
    fun begun(at: Point): Drawing = Drawing(strokes + listOf(listOf(at)))

    /** The finger moved; without a stroke it begins one. */
    fun continued(to: Point): Drawing =
        if (isEmpty) begun(to) else Drawing(strokes.dropLast(1) + listOf(strokes.last() + to))

    /**
     * The drawing as the model sees digits: [SIDE] x [SIDE] grey values in -1.5..1.5, rows first; null for an empty one.
     *
     * Made as the "Optical Recognition of Handwritten Digits" set was: the digit's box is scaled to a bitmap of 32 x 32
     * (here without distorting it), and each value counts the dark pixels of a 4 x 4 block.
     */
    fun pixels(): FloatArray? {
        val points = strokes.flatten()
        if (points.isEmpty()) return null
        val left = points.minOf { it.x }
        val top = points.minOf { it.y }
        val width = points.maxOf { it.x } - left
        val height = points.maxOf { it.y } - top
        // A dot has no size; it is drawn as one, in the middle.
        val scale = (BITMAP - PEN) / max(max(width, height), SMALLEST)
        fun inBitmap(point: Point) = Point(
            (point.x - left - width / 2) * scale + BITMAP / 2,
            (point.y - top - height / 2) * scale + BITMAP / 2,
        )
        val dark = BooleanArray(BITMAP * BITMAP)
        for (stroke in strokes) {
            val placed = stroke.map(::inBitmap)
            placed.zip(placed.drop(1) + placed.last()) { from, to -> dark.ink(from, to) }
        }
        return FloatArray(SIDE * SIDE) { index ->
            val (row, column) = index / SIDE to index % SIDE
            var count = 0
            for (y in row * BLOCK until (row + 1) * BLOCK) {
                for (x in column * BLOCK until (column + 1) * BLOCK) if (dark[y * BITMAP + x]) count++
            }
            (count / (BLOCK * BLOCK).toFloat() - 0.5f) * 3f
        }
    }

    private fun BooleanArray.ink(from: Point, to: Point) {
        val reach = PEN / 2
        val rows = rows(min(from.y, to.y) - reach, max(from.y, to.y) + reach)
        val columns = rows(min(from.x, to.x) - reach, max(from.x, to.x) + reach)
        for (y in rows) {
            for (x in columns) {
                if (squaredDistance(x + 0.5f, y + 0.5f, from, to) <= reach * reach) this[y * BITMAP + x] = true
            }
        }
    }

    private fun rows(from: Float, to: Float): IntRange =
        max(0, floor(from).toInt())..min(BITMAP - 1, ceil(to).toInt())

    private fun squaredDistance(x: Float, y: Float, from: Point, to: Point): Float {
        val (dx, dy) = to.x - from.x to to.y - from.y
        val length = dx * dx + dy * dy
        val along = if (length == 0f) 0f else (((x - from.x) * dx + (y - from.y) * dy) / length).coerceIn(0f, 1f)
        val (ex, ey) = x - from.x - along * dx to y - from.y - along * dy
        return ex * ex + ey * ey
    }

    companion object {
        /** Pixels a side of what the model sees. */
        const val SIDE: Int = 8
        private const val BLOCK = 4
        private const val BITMAP = SIDE * BLOCK

        /** The pen's width in pixels of the bitmap: with it, drawings hold about as much ink as the data set's digits. */
        private const val PEN = 5.8f

        /** A drawing smaller than this share of the pad is not blown up any further. */
        private const val SMALLEST = 0.02f
    }
}
