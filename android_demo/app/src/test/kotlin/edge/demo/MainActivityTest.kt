package edge.demo

import android.app.Activity
import android.app.AlertDialog
import android.app.Application
import android.content.Intent
import android.net.Uri
import android.os.Bundle
import android.view.MotionEvent
import android.view.View
import android.widget.TextView
import edge.android.Conditions
import edge.android.Eligibility
import org.junit.Assert.assertEquals
import org.junit.Assert.assertFalse
import org.junit.Assert.assertTrue
import org.junit.Test
import org.junit.runner.RunWith
import org.robolectric.Robolectric
import org.robolectric.RobolectricTestRunner
import org.robolectric.RuntimeEnvironment
import org.robolectric.Shadows.shadowOf
import org.robolectric.annotation.Config
import org.robolectric.shadows.ShadowAlertDialog

/** The process that the window is in, without a phone's storage and network. */
class FakeHost : Application(), DemoHost {
    val asked: MutableList<String> = mutableListOf()
    val shelf: FakeShelf = FakeShelf()
    val choices: FakeChoices = FakeChoices()
    var tell: (Learned) -> Unit = {}
    private val phone = Conditions(charging = true, connected = true, metered = false)

    override fun demo(show: (DemoState) -> Unit): Demo =
        Demo(FakeModel(), shelf, choices, FakeLearning(asked), Eligibility(), { phone }, show).also { it.start() }

    override fun listen(listener: (Learned) -> Unit) {
        tell = listener
    }

    override fun read(document: Uri): String = FakeLearning.INVITATION.takeIf { document.lastPathSegment == "phone.invitation" }.orEmpty()
}

@RunWith(RobolectricTestRunner::class)
@Config(application = FakeHost::class, qualifiers = "w360dp-h700dp-mdpi")
class MainActivityTest {
    private val host get() = RuntimeEnvironment.getApplication() as FakeHost

    private fun window(saved: Bundle? = null): Activity =
        Robolectric.buildActivity(MainActivity::class.java).create(saved).start().resume().visible().get()

    private fun Activity.words(id: Int): String = find<TextView>(id).let { if (it.isShown) it.text.toString() else "" }

    private fun Activity.click(id: Int) {
        val view = find<View>(id)
        assertTrue("${resources.getResourceEntryName(id)} cannot be clicked", view.isShown && view.isEnabled)
        view.performClick()
    }

    private fun Activity.draw(drawing: Drawing) {
        val pad = find<DrawingPad>(R.id.pad)
        val left = (pad.width - pad.height) / 2f
        for (stroke in drawing.strokes) stroke.forEachIndexed { index, point ->
            val action = if (index == 0) MotionEvent.ACTION_DOWN else MotionEvent.ACTION_MOVE
            val event = MotionEvent.obtain(0, index.toLong(), action, left + point.x * pad.height, point.y * pad.height, 0)
            assertTrue(pad.dispatchTouchEvent(event))
        }
    }

    private fun Activity.open(document: String) {
        click(R.id.invite)
        val asked = shadowOf(this).nextStartedActivityForResult.intent
        assertEquals(Intent.ACTION_OPEN_DOCUMENT, asked.action)
        shadowOf(this).receiveResult(asked, Activity.RESULT_OK, Intent().setData(Uri.parse("content://files/$document")))
    }

    private fun answer(button: Int) {
        val dialog = ShadowAlertDialog.getLatestAlertDialog()
        assertTrue(dialog.isShowing)
        dialog.getButton(button).performClick()
        shadowOf(android.os.Looper.getMainLooper()).idle()
    }

    @Test
    fun `a finger draws what the model sees, and an answer is kept`() {
        val window = window()
        window.draw(Shapes.digits[3])
        assertEquals(window.getString(R.string.guess_words, 3), window.words(R.id.guess_words))
        val buttons = ArrayList<View>()
        window.window.decorView.findViewsWithText(buttons, "It is a 3", View.FIND_VIEWS_WITH_CONTENT_DESCRIPTION)
        buttons.single().performClick()
        assertEquals(listOf(3), host.shelf.kept.map { it.digit })
        // As large and as placed as the finger drew it.
        val expected = Shapes.digits[3].pixels()!!
        host.shelf.kept[0].pixels.forEachIndexed { index, value -> assertEquals(expected[index], value, 0.4f) }
        window.click(R.id.wipe)
        assertEquals(window.getString(R.string.guess_none), window.words(R.id.guess_words))
        window.click(R.id.tab_stored)
        assertEquals("1 example, on this phone only", window.words(R.id.stored_title))
    }

    @Test
    fun `from an invitation over consent to withdrawal, in one place, and nothing by one tap alone`() {
        val window = window()
        repeat(DemoState.FEWEST_EXAMPLES) { host.shelf.add(Example(Shapes.digits[1].pixels()!!.toList(), 1)) }
        window.click(R.id.tab_learn)
        window.open("shopping-list.txt")
        assertTrue("does not say where the coordinator is" in window.words(R.id.problem))
        window.click(R.id.dismiss)
        window.open("phone.invitation")
        assertEquals(emptyList<String>(), host.asked)
        window.click(R.id.consent)
        assertEquals(listOf("join mqtts://fl.example.com:8883"), host.asked)
        window.click(R.id.withdraw)
        answer(AlertDialog.BUTTON_NEGATIVE)
        assertTrue(host.choices.consenting)
        window.click(R.id.withdraw)
        answer(AlertDialog.BUTTON_POSITIVE)
        assertEquals("withdraw", host.asked.last())
        assertFalse(host.choices.consenting)
        assertEquals(emptyList<Example>(), host.shelf.kept)
        assertEquals(window.getString(R.string.notice_withdrawn), window.words(R.id.problem))
    }

    @Test
    fun `erasing examples is asked about first`() {
        host.shelf.add(Example(Shapes.digits[1].pixels()!!.toList(), 1))
        val window = window()
        window.click(R.id.tab_stored)
        window.click(R.id.erase)
        answer(AlertDialog.BUTTON_NEGATIVE)
        assertEquals(1, host.shelf.kept.size)
        window.click(R.id.erase)
        answer(AlertDialog.BUTTON_POSITIVE)
        assertEquals(0, host.shelf.kept.size)
        window.click(R.id.draw_one)
        assertTrue(window.find<View>(R.id.pad).isShown)
    }

    @Test
    fun `what is learned from another thread is shown, and a window made anew shows the same page`() {
        host.choices.consenting = true
        host.choices.invitation = FakeLearning.INVITATION
        val window = window()
        window.click(R.id.tab_learn)
        Thread { host.tell(Learned.ProgressChanged(Progress(4, 10, 40))) }.apply { start() }.join()
        shadowOf(android.os.Looper.getMainLooper()).idle()
        assertEquals("Step 10 of 40, 25%", window.words(R.id.progress_words))
        val saved = Bundle()
        androidx.test.platform.app.InstrumentationRegistry.getInstrumentation().callActivityOnSaveInstanceState(window, saved)
        assertTrue(window(saved).find<View>(R.id.learn_title).isShown)
    }
}
