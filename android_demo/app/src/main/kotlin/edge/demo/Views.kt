package edge.demo

import android.app.Activity
import android.util.TypedValue
import android.view.View

/** The view of that id, which the layout has. */
internal fun <T : View> View.find(id: Int): T =
    checkNotNull(findViewById<T>(id)) { "the layout has no ${resources.getResourceEntryName(id)}" }

/** The view of that id, which the layout has. */
internal fun <T : View> Activity.find(id: Int): T =
    checkNotNull(findViewById<T>(id)) { "the layout has no ${resources.getResourceEntryName(id)}" }

/** A text's size in pixels, as large as the person wants text to be. */
internal fun View.sp(size: Float): Float =
    TypedValue.applyDimension(TypedValue.COMPLEX_UNIT_SP, size, resources.displayMetrics)
