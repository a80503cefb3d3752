package edge.demo

import android.annotation.SuppressLint
import android.content.Context
import android.graphics.Canvas
import android.graphics.Paint
import android.graphics.Path
import android.graphics.RectF
import android.util.AttributeSet
import android.view.MotionEvent
import android.view.View
import kotlin.math.min

/** A place to draw on with one finger. Shows a [Drawing], and tells where the finger is. */
class DrawingPad(context: Context, attributes: AttributeSet?) : View(context, attributes) {
    /** Told where the finger came down. */
    var onBegin: (Point) -> Unit = {}

    /** Told where the finger moved to. */
    var onMove: (Point) -> Unit = {}

    /** What it shows. */
    var drawing: Drawing = Drawing()
        set(value) {
            if (field == value) return
            field = value
            invalidate()
        }

    private val path = Path()
    private val frame = RectF()
    private val density = resources.displayMetrics.density
    private val paper = Paint(Paint.ANTI_ALIAS_FLAG).apply { color = context.getColor(R.color.paper) }
    private val edge = Paint(Paint.ANTI_ALIAS_FLAG).apply {
        color = context.getColor(R.color.track)
        style = Paint.Style.STROKE
        strokeWidth = density
    }
    private val ink = Paint(Paint.ANTI_ALIAS_FLAG).apply {
        color = context.getColor(R.color.ink)
        style = Paint.Style.STROKE
        strokeCap = Paint.Cap.ROUND
        strokeJoin = Paint.Join.ROUND
    }

    override fun onMeasure(widthMeasureSpec: Int, heightMeasureSpec: Int) {
        // Less than half of a small screen's height leaves room for the answer below it.
        val most = (resources.displayMetrics.heightPixels * HEIGHT_SHARE).toInt()
        val width = MeasureSpec.getSize(widthMeasureSpec)
        setMeasuredDimension(width, min(width, most))
    }

    override fun onDraw(canvas: Canvas) {
        val side = height.toFloat()
        frame.set(0f, 0f, width.toFloat(), side)
        frame.inset(density / 2, density / 2)
        canvas.drawRoundRect(frame, CORNER_DP * density, CORNER_DP * density, paper)
        canvas.drawRoundRect(frame, CORNER_DP * density, CORNER_DP * density, edge)
        ink.strokeWidth = side * PEN_SHARE
        path.rewind()
        for (stroke in drawing.strokes) {
            path.moveTo(stroke[0].x * side + offset, stroke[0].y * side)
            // A line to its own beginning makes a dot of a tap.
            stroke.forEach { path.lineTo(it.x * side + offset, it.y * side) }
        }
        canvas.drawPath(path, ink)
    }

    // Whoever cannot draw with a finger cannot use a click either; the page says what the pad is for.
    @SuppressLint("ClickableViewAccessibility")
    override fun onTouchEvent(event: MotionEvent): Boolean {
        when (event.actionMasked) {
            MotionEvent.ACTION_DOWN -> {
                parent?.requestDisallowInterceptTouchEvent(true)
                onBegin(point(event.x, event.y))
            }
            MotionEvent.ACTION_MOVE -> {
                for (index in 0 until event.historySize) {
                    onMove(point(event.getHistoricalX(index), event.getHistoricalY(index)))
                }
                onMove(point(event.x, event.y))
            }
            else -> return super.onTouchEvent(event)
        }
        return true
    }

    /** Where the square begins in a pad that is wider than high. */
    private val offset: Float get() = (width - height) / 2f

    private fun point(x: Float, y: Float) = Point((x.coerceIn(0f, width.toFloat()) - offset) / height, (y / height).coerceIn(0f, 1f))

    private companion object {
        const val PEN_SHARE = 0.07f
        const val CORNER_DP = 16f
        const val HEIGHT_SHARE = 0.28f
    }
}
