package edge.demo

import android.app.Activity
import android.app.AlertDialog
import android.content.Intent
import android.net.Uri
import android.os.Bundle
import android.view.LayoutInflater
import android.view.View

/** What the window needs of the process that it is in. */
interface DemoHost {
    /** The app's state, for a window that shows it. */
    fun demo(show: (DemoState) -> Unit): Demo

    /** Tell what happens on the learning side to this one, on any thread. */
    fun listen(listener: (Learned) -> Unit)

    /** A document's text; empty where it cannot be read or is longer than any that the app opens. */
    fun read(document: Uri): String
}

/** The app's one window: passes on what the person does. */
class MainActivity : Activity() {
    private lateinit var screen: Screen
    private lateinit var demo: Demo
    private val host get() = application as DemoHost

    override fun onCreate(savedInstanceState: Bundle?) {
        super.onCreate(savedInstanceState)
        val root = LayoutInflater.from(this).inflate(R.layout.main, null)
        setContentView(root)
        screen = Screen(root)
        demo = host.demo(screen::show)
        screen.pad.onBegin = demo::begin
        screen.pad.onMove = demo::move
        screen.teach.forEachIndexed { digit, button -> button.setOnClickListener { demo.teach(digit) } }
        clicked(R.id.tab_draw) { demo.open(Page.DRAW) }
        clicked(R.id.tab_stored) { demo.open(Page.STORED) }
        clicked(R.id.tab_learn) { demo.open(Page.LEARN) }
        clicked(R.id.draw_one) { demo.open(Page.DRAW) }
        clicked(R.id.dismiss) { demo.dismiss() }
        clicked(R.id.wipe) { demo.wipe() }
        clicked(R.id.erase) { ask(R.string.erase_question, R.string.erase_yes) { demo.eraseExamples() } }
        clicked(R.id.invite) { openInvitation() }
        clicked(R.id.consent) { demo.consent() }
        clicked(R.id.withdraw) { ask(R.string.withdraw_question, R.string.withdraw_yes) { demo.withdraw() } }
        clicked(R.id.train_now) { demo.trainNow() }
        savedInstanceState?.getString(PAGE)?.let { demo.open(Page.valueOf(it)) }
    }

    override fun onStart() {
        super.onStart()
        host.listen { learned -> runOnUiThread { demo.learned(learned) } }
        demo.refreshConditions()
    }

    override fun onActivityResult(requestCode: Int, resultCode: Int, data: Intent?) {
        super.onActivityResult(requestCode, resultCode, data)
        val uri = data?.data
        if (requestCode == INVITATION && resultCode == RESULT_OK && uri != null) demo.invite(host.read(uri))
    }

    override fun onStop() {
        host.listen {}
        super.onStop()
    }

    override fun onSaveInstanceState(outState: Bundle) {
        super.onSaveInstanceState(outState)
        outState.putString(PAGE, demo.state.page.name)
    }

    private fun openInvitation() {
        val choose = Intent(Intent.ACTION_OPEN_DOCUMENT).addCategory(Intent.CATEGORY_OPENABLE).setType("*/*")
        @Suppress("DEPRECATION") // What replaces it is in AndroidX.
        startActivityForResult(choose, INVITATION)
    }

    private fun clicked(id: Int, action: () -> Unit) = find<View>(id).setOnClickListener { action() }

    private fun ask(question: Int, yes: Int, action: () -> Unit) {
        AlertDialog.Builder(this)
            .setMessage(question)
            .setPositiveButton(yes) { _, _ -> action() }
            .setNegativeButton(R.string.cancel, null)
            .show()
    }

    private companion object {
        const val PAGE = "page"
        const val INVITATION = 1
    }
}
