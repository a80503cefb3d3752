package edge.demo

import android.view.LayoutInflater
import android.view.View
import android.view.ViewGroup
import android.widget.Button
import android.widget.LinearLayout
import android.widget.ProgressBar
import android.widget.TextView
import edge.android.Objection
import java.util.Locale
import kotlin.math.roundToInt

/** Puts a [DemoState] into the views of `layout/main`. It decides nothing but words and looks. */
class Screen(private val root: View) {
    private val resources = root.resources

    /** The pad to draw on. */
    val pad: DrawingPad = root.find(R.id.pad)

    /** The buttons "It is a 0" to "It is a 9". */
    val teach: List<Button> = (0 until Guess.DIGITS).map { addTeachButton(it) }

    /** Show this. */
    fun show(state: DemoState) {
        view(R.id.page_draw).visible(state.page == Page.DRAW)
        view(R.id.page_stored).visible(state.page == Page.STORED)
        view(R.id.page_learn).visible(state.page == Page.LEARN)
        view(R.id.tab_draw).isSelected = state.page == Page.DRAW
        view(R.id.tab_stored).isSelected = state.page == Page.STORED
        view(R.id.tab_learn).isSelected = state.page == Page.LEARN
        text(R.id.problem, state.problem.orEmpty())
        view(R.id.problem).visible(state.problem != null)
        showDrawing(state)
        showStored(state)
        showLearning(state)
    }

    private fun showDrawing(state: DemoState) {
        pad.drawing = state.drawing
        view(R.id.pad_hint).visible(state.drawing.isEmpty)
        view(R.id.wipe).visible(!state.drawing.isEmpty)
        val guess = state.guess
        text(R.id.guess, guess?.digit?.toString() ?: "?")
        text(
            R.id.guess_words,
            when {
                guess == null -> string(R.string.guess_none)
                guess.confidence < SURE -> string(R.string.guess_unsure, guess.digit)
                else -> string(R.string.guess_words, guess.digit, percent(guess.confidence))
            },
        )
        text(
            R.id.model,
            when (state.modelProblem) {
                ModelProblem.NO_RUNTIME -> string(R.string.model_no_runtime)
                ModelProblem.BAD_MODEL -> string(R.string.model_bad)
                null -> if (state.modelVersion == null || state.modelVersion == 0) {
                    string(R.string.model_starting)
                } else {
                    string(R.string.model_version, state.modelVersion)
                }
            },
        )
        val bars = root.find<Bars>(R.id.probabilities)
        bars.shares = guess?.probabilities ?: List(Guess.DIGITS) { 0f }
        bars.contentDescription = guess?.let {
            string(
                R.string.probabilities_description,
                it.probabilities.mapIndexed { digit, share -> string(R.string.probability, digit, percent(share)) }
                    .joinToString(),
            )
        }
        val canTeach = !state.drawing.isEmpty && state.taught == null
        teach.forEach { it.isEnabled = canTeach }
        text(
            R.id.taught,
            when {
                state.taught != null -> string(R.string.taught, state.taught)
                state.drawing.isEmpty -> string(R.string.teach_empty)
                else -> ""
            },
        )
    }

    private fun showStored(state: DemoState) {
        val number = state.examples.size
        text(
            R.id.stored_title,
            if (number == 0) {
                string(R.string.stored_none)
            } else {
                resources.getQuantityString(R.plurals.stored_title, number, number)
            },
        )
        val counts = state.counts
        val bars = root.find<Bars>(R.id.counts)
        val most = counts.max().coerceAtLeast(1)
        bars.shares = counts.map { it / most.toFloat() }
        bars.contentDescription = string(
            R.string.counts_description,
            counts.mapIndexed { digit, count -> string(R.string.count, digit, count) }.joinToString(),
        )
        val newest = state.examples.asReversed().toList()
        val thumbnails = root.find<Thumbnails>(R.id.thumbnails)
        thumbnails.examples = newest
        thumbnails.contentDescription = if (number == 0) {
            string(R.string.thumbnails_none)
        } else {
            string(R.string.thumbnails_description, newest.take(NAMED_EXAMPLES).joinToString { it.digit.toString() })
        }
        view(R.id.erase).isEnabled = number > 0
    }

    private fun showLearning(state: DemoState) {
        text(R.id.learn_title, string(if (state.consenting) R.string.learn_title_in else R.string.learn_title_out))
        text(
            R.id.learn_words,
            when {
                !state.consenting -> string(R.string.learn_words_out)
                state.runProblem != null -> string(R.string.learn_words_problem, state.runProblem)
                state.waiting != null -> string(R.string.learn_words_waiting, state.waiting)
                state.running -> string(R.string.learn_words_running, state.coordinator)
                else -> string(R.string.learn_words_in)
            },
        )
        val invited = state.coordinator.isNotEmpty()
        text(
            R.id.invitation,
            if (invited) string(R.string.invitation, state.coordinator) else string(R.string.invitation_none),
        )
        view(R.id.invitation).visible(!state.consenting)
        view(R.id.invite).visible(!state.consenting)
        view(R.id.consent).visible(!state.consenting)
        view(R.id.consent).isEnabled = invited
        view(R.id.train_now).visible(state.consenting)
        view(R.id.train_now).isEnabled = state.canTrainNow
        view(R.id.withdraw).visible(state.consenting)
        text(R.id.conditions, conditions(state))
        view(R.id.conditions).visible(state.consenting)
        root.find<ProgressBar>(R.id.budget).progress = (state.budgetShare * BUDGET_STEPS).roundToInt()
        text(
            R.id.budget_words,
            string(
                R.string.budget_words,
                number(state.epsilonSpent),
                number(state.epsilonLimit),
                String.format(locale, "%.0e", state.delta),
            ),
        )
        showRounds(state.rounds)
    }

    private fun conditions(state: DemoState): String {
        val missing = DemoState.FEWEST_EXAMPLES - state.examples.size
        return when {
            state.objections.isNotEmpty() ->
                string(R.string.conditions_not, state.objections.joinToString { string(words(it)) })
            state.running -> ""
            missing > 0 -> resources.getQuantityString(R.plurals.conditions_few, missing, missing)
            else -> string(R.string.conditions_good)
        }
    }

    private fun showRounds(rounds: List<Round>) {
        val list = root.find<LinearLayout>(R.id.rounds)
        list.removeAllViews()
        val inflater = LayoutInflater.from(root.context)
        if (rounds.isEmpty()) {
            val none = inflater.inflate(R.layout.round, list, false)
            none.find<TextView>(R.id.round_number).visible(false)
            none.find<TextView>(R.id.round_stage).text = string(R.string.rounds_none)
            none.find<TextView>(R.id.round_receipt).visible(false)
            list.addView(none)
        }
        for (round in rounds) {
            val row = inflater.inflate(R.layout.round, list, false)
            row.find<TextView>(R.id.round_number).text = string(R.string.round_number, round.number)
            row.find<TextView>(R.id.round_stage).text = words(round.stage)
            val receipt = row.find<TextView>(R.id.round_receipt)
            val id = when (val stage = round.stage) {
                is Stage.Shared -> stage.receipt
                is Stage.Finished -> stage.receipt
                else -> null
            }
            receipt.visible(id != null)
            receipt.text = string(R.string.round_receipt, id.orEmpty())
            list.addView(row)
        }
    }

    private fun words(stage: Stage): String = when (stage) {
        is Stage.Trained -> resources.getQuantityString(R.plurals.round_trained, stage.examples, stage.examples)
        is Stage.Shared -> string(R.string.round_shared, stage.bytes, number(stage.epsilon))
        is Stage.Finished -> string(R.string.round_finished, stage.version, number(stage.epsilon))
        is Stage.Refused -> string(R.string.round_refused, stage.reason)
    }

    private fun words(objection: Objection): Int = when (objection) {
        Objection.NOT_CHARGING -> R.string.objection_not_charging
        Objection.LOW_BATTERY -> R.string.objection_low_battery
        Objection.NO_NETWORK -> R.string.objection_no_network
        Objection.METERED -> R.string.objection_metered
        Objection.IN_USE -> R.string.objection_in_use
        Objection.POWER_SAVE -> R.string.objection_power_save
        Objection.HOT -> R.string.objection_hot
        Objection.LITTLE_MEMORY -> R.string.objection_little_memory
        Objection.LITTLE_DISK -> R.string.objection_little_disk
    }

    private fun addTeachButton(digit: Int): Button {
        val row = root.find<ViewGroup>(if (digit < Guess.DIGITS / 2) R.id.teach_first else R.id.teach_second)
        val button = Button(root.context, null, 0, R.style.Action)
        button.text = digit.toString()
        button.textSize = DIGIT_SP
        button.contentDescription = string(R.string.teach_description, digit)
        button.setBackgroundResource(R.drawable.digit_button)
        button.setTextColor(root.context.getColorStateList(R.color.action))
        val size = resources.getDimensionPixelSize(R.dimen.digit)
        val gap = resources.getDimensionPixelSize(R.dimen.page) / 4
        row.addView(button, LinearLayout.LayoutParams(0, size, 1f).apply { setMargins(gap / 2, 0, gap / 2, 0) })
        return button
    }

    private val locale: Locale get() = resources.configuration.locales[0]

    private fun view(id: Int): View = root.find(id)

    private fun text(id: Int, words: String) {
        val view = root.find<TextView>(id)
        // The same words again would be read aloud again.
        if (view.text.toString() != words) view.text = words
    }

    private fun string(id: Int, vararg values: Any): String = resources.getString(id, *values)

    private fun number(value: Double): String = String.format(locale, "%.2f", value)

    private fun percent(share: Float): Int = (share * 100).roundToInt()

    private fun View.visible(visible: Boolean) {
        visibility = if (visible) View.VISIBLE else View.GONE
    }

    private companion object {
        const val SURE = 0.5f
        const val NAMED_EXAMPLES = 12
        const val BUDGET_STEPS = 1000
        const val DIGIT_SP = 20f
    }
}
