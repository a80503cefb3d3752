package edge.demo

import android.content.Context
import android.graphics.Canvas
import android.graphics.Paint
import android.graphics.RectF
import android.util.AttributeSet
import android.view.View

/** A bar for each digit, with the digit below it and a value above it; the tallest stands out. */
class Bars(context: Context, attributes: AttributeSet?) : View(context, attributes) {
    /** How tall each bar is, 0 to 1. */
    var shares: List<Float> = emptyList()
        set(value) {
            if (field == value) return
            field = value
            invalidate()
        }

    /** What stands above each bar; empty for nothing. */
    var values: List<String> = emptyList()
        set(value) {
            if (field == value) return
            field = value
            invalidate()
        }

    private val density = resources.displayMetrics.density
    private val bar = RectF()
    private val track = Paint(Paint.ANTI_ALIAS_FLAG).apply { color = context.getColor(R.color.track) }
    private val filled = Paint(Paint.ANTI_ALIAS_FLAG).apply { color = context.getColor(R.color.outline) }
    private val tallest = Paint(Paint.ANTI_ALIAS_FLAG).apply { color = context.getColor(R.color.accent) }
    private val label = Paint(Paint.ANTI_ALIAS_FLAG).apply {
        color = context.getColor(R.color.text_secondary)
        textAlign = Paint.Align.CENTER
        textSize = sp(LABEL_SP)
    }

    override fun onMeasure(widthMeasureSpec: Int, heightMeasureSpec: Int) {
        // Larger text takes nothing away from the bars.
        val wanted = suggestedMinimumHeight + (label.textSize - LABEL_SP * density).coerceAtLeast(0f) * 2 * LINE
        setMeasuredDimension(MeasureSpec.getSize(widthMeasureSpec), resolveSize(wanted.toInt(), heightMeasureSpec))
    }

    override fun onDraw(canvas: Canvas) {
        if (shares.isEmpty()) return
        val slot = width.toFloat() / shares.size
        val top = if (values.isEmpty()) 0f else label.textSize * LINE
        val bottom = height - label.textSize * LINE
        val round = minOf(BAR_SHARE * slot, WIDEST_DP * density) / 2
        val highest = shares.max()
        shares.forEachIndexed { index, share ->
            val middle = (index + 0.5f) * slot
            bar.set(middle - round, top, middle + round, bottom)
            canvas.drawRoundRect(bar, round, round, track)
            if (share > LEAST) {
                bar.top = bottom - (bottom - top) * share
                // Less than its own ends cannot be drawn.
                bar.top = minOf(bar.top, bottom - 2 * round)
                canvas.drawRoundRect(bar, round, round, if (share == highest) tallest else filled)
            }
            canvas.drawText(index.toString(), middle, height - label.textSize * 0.2f, label)
            values.getOrNull(index)?.let { canvas.drawText(it, middle, label.textSize, label) }
        }
    }

    private companion object {
        const val LABEL_SP = 13f
        const val LINE = 1.4f
        const val BAR_SHARE = 0.4f
        const val WIDEST_DP = 12f

        /** Less is nothing to see. */
        const val LEAST = 0.02f
    }
}
