package edge.demo

import android.graphics.Bitmap
import android.graphics.Canvas
import android.graphics.Rect
import android.view.ContextThemeWrapper
import android.view.LayoutInflater
import android.view.View
import android.view.ViewGroup
import android.widget.ScrollView
import android.widget.TextView
import java.io.File
import kotlin.math.max
import kotlin.math.min
import kotlin.math.pow
import org.robolectric.RuntimeEnvironment

/** A phone to draw on: Robolectric's qualifiers, and how large the person wants text. */
class Paper(val name: String, private val qualifiers: String, private val fontScale: Float = 1f) {
    /** Be this phone from now on. */
    fun use() {
        RuntimeEnvironment.setQualifiers(qualifiers)
        RuntimeEnvironment.setFontScale(fontScale)
    }

    /** The app showing that state, as long as it must be for nothing to scroll. */
    fun draw(state: DemoState): Picture {
        val context = ContextThemeWrapper(RuntimeEnvironment.getApplication(), R.style.Demo)
        val root = LayoutInflater.from(context).inflate(R.layout.main, null) as ViewGroup
        // Nobody above it says so.
        root.layoutDirection = context.resources.configuration.layoutDirection
        Screen(root).show(state)
        return Picture(root)
    }
}

/** A laid out and drawn screen, and what can be found wrong with it. */
class Picture(private val root: ViewGroup) {
    private val density = root.resources.displayMetrics.density
    private val bitmap: Bitmap
    private val pixels: IntArray

    /** How many pixels of it a person sees only after scrolling. */
    val hidden: Int

    init {
        val metrics = root.resources.displayMetrics
        layOut(metrics.widthPixels, metrics.heightPixels)
        hidden = shown<ScrollView>().maxOf { it.getChildAt(0).height - it.height }.coerceAtLeast(0)
        if (hidden > 0) layOut(metrics.widthPixels, metrics.heightPixels + hidden)
        bitmap = Bitmap.createBitmap(root.width, root.height, Bitmap.Config.ARGB_8888)
        root.draw(Canvas(bitmap))
        pixels = IntArray(root.width * root.height)
        bitmap.getPixels(pixels, 0, root.width, 0, 0, root.width, root.height)
    }

    /** All words that can be read on it. */
    val words: List<String> get() = shown<TextView>().map { it.text.toString() }.filter { it.isNotEmpty() }

    /** Keep it for people to look at. */
    fun save(name: String) {
        val file = File(System.getProperty("edge.screens"), "$name.png")
        file.parentFile?.mkdirs()
        file.outputStream().use { bitmap.compress(Bitmap.CompressFormat.PNG, 100, it) }
    }

    /** What is wrong with it, in words; empty where nothing is. */
    fun faults(): List<String> = blank() + shown<View>().flatMap { touch(it) + outside(it) } + shown<TextView>().flatMap { text(it) }

    private fun layOut(width: Int, height: Int) {
        root.measure(
            View.MeasureSpec.makeMeasureSpec(width, View.MeasureSpec.EXACTLY),
            View.MeasureSpec.makeMeasureSpec(height, View.MeasureSpec.EXACTLY),
        )
        root.layout(0, 0, width, height)
    }

    private inline fun <reified T : View> shown(): List<T> = all(root).filterIsInstance<T>()

    private fun all(view: View): List<View> = when {
        view.visibility != View.VISIBLE -> emptyList()
        view is ViewGroup -> listOf(view) + (0 until view.childCount).flatMap { all(view.getChildAt(it)) }
        else -> listOf(view)
    }

    private fun blank(): List<String> {
        val colours = counts(pixels)
        val most = colours.maxOf { it.second }
        return if (colours.size < 20 || most > 0.97 * pixels.size) listOf("it is blank: ${colours.size} colours") else emptyList()
    }

    /** What a finger or a screen reader needs. */
    private fun touch(view: View): List<String> {
        if (!view.isClickable && view !is DrawingPad) {
            val silent = view is Bars || view is Thumbnails
            return if (silent && view.contentDescription.isNullOrEmpty()) listOf("${name(view)} says nothing") else emptyList()
        }
        val label = view.contentDescription?.toString() ?: (view as? TextView)?.text?.toString()
        val (width, height) = view.width / density to view.height / density
        return listOfNotNull(
            "${name(view)} has no label".takeIf { label.isNullOrBlank() },
            "${name(view)} is $width x $height dp, smaller than a finger".takeIf { min(width, height) < TOUCH_DP - 0.5f },
        )
    }

    private fun outside(view: View): List<String> {
        if (view === root) return emptyList()
        val parent = view.parent as View
        val fits = view.left >= 0 && view.top >= 0 && view.right <= parent.width && view.bottom <= parent.height
        return if (fits || parent is ScrollView) emptyList() else listOf("${name(view)} is cut off by what it is in")
    }

    private fun text(view: TextView): List<String> {
        if (view.text.isEmpty()) return emptyList()
        val layout = view.layout
        val room = view.width - view.totalPaddingLeft - view.totalPaddingRight
        val found = ArrayList<String>()
        if (layout.height > view.height - view.totalPaddingTop - view.totalPaddingBottom) found += "'${view.text}' is cut off below"
        for (line in 0 until layout.lineCount) {
            if (layout.getEllipsisCount(line) > 0) found += "'${view.text}' ends in an ellipsis"
            if (layout.getLineMax(line) > room + 1) found += "'${view.text}' is wider than its place"
            val end = layout.getLineEnd(line)
            // A line ends at a space or with the text: nothing is broken in the middle of a word, but of a machine's.
            val isBroken = end < view.text.length && view.text[end - 1] !in " \n-" && view.id != R.id.round_receipt
            val word = view.text.substring(0, end).substringAfterLast(' ')
            if (isBroken && word.none { it in ".:_/" }) found += "'${view.text}' is broken after '$word'"
        }
        val contrast = contrast(view)
        if (contrast < CONTRAST) found += "'${view.text}' has a contrast of ${"%.2f".format(contrast)}"
        return found
    }

    /** The contrast of WCAG between the commonest colour where the text is, and the one most unlike it. */
    private fun contrast(view: TextView): Double {
        val place = Rect(0, 0, view.width, view.height)
        root.offsetDescendantRectToMyCoords(view, place)
        place.left += view.totalPaddingLeft
        place.right -= view.totalPaddingRight
        place.top += view.totalPaddingTop
        place.bottom -= view.totalPaddingBottom
        if (!place.intersect(0, 0, root.width, root.height)) return 0.0
        val there = IntArray(place.width() * place.height()) { at ->
            pixels[(place.top + at / place.width()) * root.width + place.left + at % place.width()]
        }
        val colours = counts(there)
        val ground = luminance(colours.maxByOrNull { it.second }?.first ?: return 0.0)
        return colours.maxOf { (colour, _) ->
            val ink = luminance(colour)
            (max(ink, ground) + 0.05) / (min(ink, ground) + 0.05)
        }
    }

    /** Each colour among these, and how many there are of it. */
    private fun counts(pixels: IntArray): List<Pair<Int, Int>> {
        val sorted = pixels.sortedArray()
        val starts = sorted.indices.filter { it == 0 || sorted[it] != sorted[it - 1] }
        return starts.mapIndexed { at, start -> sorted[start] to (starts.getOrElse(at + 1) { sorted.size }) - start }
    }

    private fun luminance(colour: Int): Double {
        fun channel(shift: Int): Double {
            val share = (colour shr shift and 0xff) / 255.0
            return if (share <= 0.04045) share / 12.92 else ((share + 0.055) / 1.055).pow(2.4)
        }
        return 0.2126 * channel(16) + 0.7152 * channel(8) + 0.0722 * channel(0)
    }

    private fun name(view: View): String =
        if (view.id == View.NO_ID) view.javaClass.simpleName else view.resources.getResourceEntryName(view.id)

    private companion object {
        const val TOUCH_DP = 48f
        const val CONTRAST = 4.5
    }
}
