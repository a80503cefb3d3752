package edge.demo

import android.app.Application
import android.content.res.Resources
import edge.android.Objection
import org.junit.Assert.assertEquals
import org.junit.Test
import org.junit.runner.RunWith
import org.robolectric.RobolectricTestRunner
import org.robolectric.RuntimeEnvironment
import org.robolectric.annotation.Config

/** Draws every page in every state on several phones, keeps the pictures, and holds them to what can be measured. */
@RunWith(RobolectricTestRunner::class)
@Config(application = Application::class)
class ScreensTest {
    /** A state, and what must be readable in it. */
    private class Case(val name: String, val state: DemoState, val words: Resources.() -> List<String>)

    private val examples = listOf(3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8, 9, 7, 9).map { Example(Shapes.digits[it].pixels()!!.toList(), it) }
    private val sure = Guess(List(10) { if (it == 3) 0.91f else if (it == 8) 0.05f else 0.005f })
    private val unsure = Guess(List(10) { if (it == 7) 0.38f else if (it == 1) 0.31f else if (it == 9) 0.2f else 0.0157f })

    private val first = DemoState(modelVersion = 0)
    private val drawn = first.copy(drawing = Shapes.digits[3], guess = sure)
    private val out = first.copy(page = Page.LEARN)
    private val waiting = out.copy(
        consenting = true,
        coordinator = "mqtts://fl.example.com:8883",
        examples = examples,
        modelVersion = 12,
        epsilonSpent = 1.32,
        rounds = listOf(
            Round(13, Stage.Trained(15)),
            Round(12, Stage.Finished(12, "9f86d081884c7d65", 1.32)),
            Round(11, Stage.Shared(20_844, "a591a6d40bf42040", 0.71)),
            Round(10, Stage.Refused("cohort_too_small", "the plan sums 5 devices, this one insists on 20")),
        ),
    )
    private val running = waiting.copy(running = true)

    private fun refused(reason: String, detail: String) =
        waiting.copy(rounds = listOf(Round(13, Stage.Refused(reason, detail)), waiting.rounds[1]))

    private fun troubled(kind: Trouble.Kind, detail: String) = waiting.copy(trouble = Trouble(kind, detail))

    private val cases = listOf(
        Case("draw-first", first) { listOf(getString(R.string.guess_none), getString(R.string.teach_empty), getString(R.string.model_starting)) },
        Case("draw-sure", drawn) { listOf(getString(R.string.guess_words, 3), getString(R.string.guess_more, 91)) },
        Case("draw-unsure", first.copy(drawing = Shapes.digits[7], guess = unsure, modelVersion = 12)) {
            listOf(getString(R.string.guess_unsure, 7), getString(R.string.model_version, 12))
        },
        Case("draw-taught", drawn.copy(taught = 3, examples = examples)) { listOf(getString(R.string.taught, 3)) },
        Case("draw-no-runtime", first.copy(drawing = Shapes.digits[4], modelVersion = null, modelProblem = ModelProblem.NO_RUNTIME)) {
            listOf(getString(R.string.guess_no_runtime), getString(R.string.model_no_runtime), getString(R.string.model_none))
        },
        Case("draw-bad-model", first.copy(modelVersion = null, modelProblem = ModelProblem.BAD_MODEL)) {
            listOf(getString(R.string.guess_bad), getString(R.string.model_bad))
        },
        Case("draw-cut-off", drawn.copy(modelVersion = 11, notice = Notice.CUT_OFF)) { listOf(getString(R.string.notice_cut_off)) },
        Case("draw-replaced", first.copy(notice = Notice.REPLACED)) { listOf(getString(R.string.notice_replaced)) },
        Case("draw-full-phone", drawn.copy(problem = "Cannot write digits.examples: no space left. Free some storage.")) {
            listOf("Cannot write digits.examples: no space left. Free some storage.")
        },
        Case("examples-none", first.copy(page = Page.STORED)) { listOf(getString(R.string.stored_none), getString(R.string.draw_one)) },
        Case("examples", waiting.copy(page = Page.STORED)) {
            listOf(getQuantityString(R.plurals.stored_title, 15, 15), getString(R.string.stored_words), getString(R.string.erase))
        },
        Case("training-withdrawn", waiting.withdrawn()) { listOf(getString(R.string.notice_withdrawn), getString(R.string.learn_title_out)) },
        Case("training-out", out) { listOf(getString(R.string.learn_title_out), getString(R.string.invitation_none), getString(R.string.fact_phone)) },
        Case("training-invited", out.copy(coordinator = "mqtts://fl.example.com:8883")) {
            listOf(getString(R.string.invitation, "fl.example.com"), getString(R.string.consent))
        },
        Case("training-no-invitation", out.copy(problem = "This file does not say where the coordinator is. Ask whoever invited you for the file again.")) {
            listOf("This file does not say where the coordinator is. Ask whoever invited you for the file again.")
        },
        Case("training-few", waiting.copy(examples = examples.take(2), rounds = emptyList(), epsilonSpent = 0.0, modelVersion = 0)) {
            listOf(getQuantityString(R.plurals.conditions_few, 3, 3), getString(R.string.rounds_none), getString(R.string.choice_title_in))
        },
        Case("training-not-now", waiting.copy(objections = listOf(Objection.NOT_CHARGING, Objection.METERED))) {
            val needed = listOf(R.string.objection_not_charging, R.string.objection_metered).joinToString { getString(it) }
            listOf(getString(R.string.conditions_not, needed))
        },
        Case("training-ready", waiting) {
            listOf(getString(R.string.learn_title_waiting), getString(R.string.conditions_good), getString(R.string.withdraw)) +
                getString(R.string.budget_title, "%.2f".format(configuration.locales[0], 1.32), "%.2f".format(configuration.locales[0], 4.0)) +
                getString(R.string.round_receipt, "9f86d081884c7d65") + getString(R.string.round_shared_title, 11)
        },
        Case("training-connected", running) { listOf(getString(R.string.learn_title_connected)) },
        Case("training-deferred", running.copy(waiting = "not charging")) { listOf(getString(R.string.learn_words_deferred, "not charging")) },
        Case("training-steps", running.copy(progress = Progress(13, 12, 40))) {
            listOf(getString(R.string.learn_title_training), getString(R.string.progress_words, 12, 40, 30))
        },
        Case("training-spent", waiting.copy(epsilonSpent = 4.0, rounds = listOf(Round(14, Stage.Refused("epsilon_too_large", "it would come to epsilon 4.31, at most 4"))))) {
            listOf(getString(R.string.learn_title_spent), getString(R.string.learn_words_spent)) +
                listOf(getString(R.string.refused_detail, getString(R.string.refused_budget), "it would come to epsilon 4.31, at most 4"))
        },
        Case("training-unknown-operator", refused("bundle_invalid", OPERATOR)) {
            listOf(getString(R.string.learn_title_unusable), getString(R.string.refused_detail, getString(R.string.refused_bundle), OPERATOR))
        },
        Case("training-too-large", refused("over_memory_budget", MEMORY)) {
            listOf(getString(R.string.learn_title_unusable), getString(R.string.refused_detail, getString(R.string.refused_memory), MEMORY))
        },
        Case("training-failed", troubled(Trouble.Kind.FAILED, "cannot write device.log: no space left")) {
            listOf(getString(R.string.learn_title_failed), getString(R.string.learn_words_failed, "cannot write device.log: no space left"))
        },
        Case("training-unreachable", troubled(Trouble.Kind.UNREACHABLE, "connect timed out")) {
            listOf(getString(R.string.learn_title_unreachable), getString(R.string.train_now))
        },
        Case("training-revoked", troubled(Trouble.Kind.REVOKED, "")) {
            listOf(getString(R.string.learn_title_revoked), getString(R.string.learn_words_revoked), getString(R.string.invite_new))
        },
        Case("training-expired", troubled(Trouble.Kind.EXPIRED, "")) {
            listOf(getString(R.string.learn_title_expired), getString(R.string.invite_new))
        },
        Case("training-no-runtime", out.copy(modelVersion = null, modelProblem = ModelProblem.NO_RUNTIME)) {
            listOf(getString(R.string.learn_title_no_runtime), getString(R.string.model_no_runtime))
        },
    )

    private fun check(paper: Paper, cases: List<Case> = this.cases) {
        paper.use()
        val resources = RuntimeEnvironment.getApplication().resources
        val faults = ArrayList<String>()
        for (case in cases) {
            val picture = paper.draw(case.state)
            picture.save("${paper.name}/${case.name}")
            val missing = case.words(resources).filter { it !in picture.words }.map { "it does not say '$it'" }
            faults += (missing + picture.faults()).map { "${case.name}: $it" }
        }
        assertEquals("", faults.joinToString("\n"))
    }

    @Test
    fun `in light`() = check(Paper("light", "w360dp-h700dp-notnight-xhdpi"))

    @Test
    fun `drawing, seeing and teaching need no scrolling on a common phone`() {
        val paper = Paper("light", "w360dp-h700dp-notnight-mdpi").also { it.use() }
        for (name in listOf("draw-first", "draw-sure", "draw-unsure", "draw-taught")) {
            assertEquals(name, 0, paper.draw(cases.single { it.name == name }.state).hidden)
        }
    }

    @Test
    fun `in the dark`() = check(Paper("dark", "w360dp-h700dp-night-hdpi"))

    @Test
    fun `with text twice as large`() = check(Paper("large", "w360dp-h700dp-notnight-hdpi", 2f))

    @Test
    fun `on a narrow phone, with larger text, in the dark`() = check(Paper("narrow", "w320dp-h533dp-night-hdpi", 1.3f))

    @Test
    fun `in German, which is longer`() = check(Paper("german", "de-w360dp-h700dp-notnight-hdpi"))

    @Test
    fun `on a wide phone`() = check(Paper("wide", "w480dp-h940dp-notnight-mdpi"), one())

    @Test
    fun `on its side`() = check(Paper("landscape", "w740dp-h340dp-land-notnight-mdpi"), one())

    /** One state of each page: where there is room enough, they differ in nothing. */
    private fun one(): List<Case> = cases.filter { it.name in setOf("draw-sure", "examples", "training-out", "training-ready") }

    private companion object {
        const val OPERATOR = "the train graph needs the operator com.example:Wobble, which ONNX Runtime 1.29.0 on this device does not have"
        const val MEMORY = "training takes 412 MB, this app may use 256 MB"
    }
}
