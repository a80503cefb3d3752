package edge.demo

import android.content.Context
import android.graphics.Canvas
import android.graphics.Color
import android.graphics.Paint
import android.util.AttributeSet
import android.view.View

/** Examples as the model sees them, each with its digit; the newest first, as many as fit some rows. */
class Thumbnails(context: Context, attributes: AttributeSet?) : View(context, attributes) {
    /** What it shows, newest first. */
    var examples: List<Example> = emptyList()
        set(value) {
            if (field == value) return
            field = value
            requestLayout()
            invalidate()
        }

    private val density = resources.displayMetrics.density
    private val ink = context.getColor(R.color.ink)
    private val paper = context.getColor(R.color.paper)
    private val square = Paint()
    private val label = Paint(Paint.ANTI_ALIAS_FLAG).apply {
        color = context.getColor(R.color.text_secondary)
        textAlign = Paint.Align.CENTER
        textSize = sp(LABEL_SP)
    }

    private val cellHeight: Float get() = (SIDE_DP + GAP_DP) * density + label.textSize * 1.3f

    override fun onMeasure(widthMeasureSpec: Int, heightMeasureSpec: Int) {
        val width = MeasureSpec.getSize(widthMeasureSpec)
        val rows = (examples.size.coerceAtMost(most(width)) + columns(width) - 1) / columns(width)
        setMeasuredDimension(width, (rows * cellHeight).toInt())
    }

    override fun onDraw(canvas: Canvas) {
        val columns = columns(width)
        examples.take(most(width)).forEachIndexed { index, example ->
            val left = (index % columns) * width.toFloat() / columns
            val top = (index / columns) * cellHeight
            val pixel = SIDE_DP * density / Drawing.SIDE
            example.pixels.forEachIndexed { place, value ->
                square.color = mixed((value / 3f + 0.5f).coerceIn(0f, 1f))
                val x = left + place % Drawing.SIDE * pixel
                val y = top + place / Drawing.SIDE * pixel
                canvas.drawRect(x, y, x + pixel, y + pixel, square)
            }
            canvas.drawText(
                example.digit.toString(),
                left + SIDE_DP * density / 2,
                top + SIDE_DP * density + label.textSize * 1.1f,
                label,
            )
        }
    }

    private fun columns(width: Int): Int = (width / ((SIDE_DP + GAP_DP) * density)).toInt().coerceAtLeast(1)

    private fun most(width: Int): Int = columns(width) * MOST_ROWS

    private fun mixed(share: Float): Int {
        fun channel(of: (Int) -> Int) = (of(paper) + (of(ink) - of(paper)) * share).toInt()
        return Color.rgb(channel(Color::red), channel(Color::green), channel(Color::blue))
    }

    private companion object {
        const val SIDE_DP = 40f
        const val GAP_DP = 12f
        const val LABEL_SP = 13f
        const val MOST_ROWS = 6
    }
}
