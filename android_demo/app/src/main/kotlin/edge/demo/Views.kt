package edge.demo

import android.app.Activity
import android.view.View

/** The view of that id, which the layout has. */
internal fun <T : View> View.find(id: Int): T =
    checkNotNull(findViewById<T>(id)) { "the layout has no ${resources.getResourceEntryName(id)}" }

/** The view of that id, which the layout has. */
internal fun <T : View> Activity.find(id: Int): T =
    checkNotNull(findViewById<T>(id)) { "the layout has no ${resources.getResourceEntryName(id)}" }
