package edge.demo

import android.content.Context
import android.graphics.Canvas
import android.graphics.Paint
import android.graphics.RectF
import android.util.AttributeSet
import android.view.View

/** A bar for each digit, with the digit below it; the tallest stands out. */
class Bars(context: Context, attributes: AttributeSet?) : View(context, attributes) {
    /** How tall each bar is, 0 to 1. */
    var shares: List<Float> = emptyList()
        set(value) {
            if (field == value) return
            field = value
            invalidate()
        }

    private val density = resources.displayMetrics.density
    private val bar = RectF()
    private val track = Paint(Paint.ANTI_ALIAS_FLAG).apply { color = context.getColor(R.color.track) }
    private val tallest = Paint(Paint.ANTI_ALIAS_FLAG).apply { color = context.getColor(R.color.accent) }
    private val label = Paint(Paint.ANTI_ALIAS_FLAG).apply {
        color = context.getColor(R.color.text_secondary)
        textAlign = Paint.Align.CENTER
        textSize = LABEL_SP * density * resources.configuration.fontScale
    }

    override fun onDraw(canvas: Canvas) {
        if (shares.isEmpty()) return
        val slot = width.toFloat() / shares.size
        val bottom = height - label.textSize * 1.4f
        val highest = shares.max()
        shares.forEachIndexed { index, share ->
            val left = index * slot
            bar.set(left + slot * 0.2f, bottom * (1 - share), left + slot * 0.8f, bottom)
            // A line where nothing stands.
            if (bar.height() < 2 * density) bar.top = bottom - 2 * density
            val paint = if (share == highest && share > 0f) tallest else track
            canvas.drawRoundRect(bar, 2 * density, 2 * density, paint)
            canvas.drawText(index.toString(), left + slot / 2, height - label.textSize * 0.2f, label)
        }
    }

    private companion object {
        const val LABEL_SP = 13f
    }
}
