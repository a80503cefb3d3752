package edge.demo

import android.content.res.ColorStateList
import android.text.format.Formatter
import android.view.Gravity
import android.view.LayoutInflater
import android.view.View
import android.view.ViewGroup
import android.widget.Button
import android.widget.ImageView
import android.widget.LinearLayout
import android.widget.ProgressBar
import android.widget.TextView
import edge.android.Objection
import java.util.Locale
import kotlin.math.roundToInt

/** Puts a [DemoState] into the views of `layout/main`. It decides nothing but words and looks. */
class Screen(private val root: View) {
    private val context = root.context
    private val resources = root.resources

    /** The pad to draw on. */
    val pad: DrawingPad = root.find(R.id.pad)

    /** The buttons "It is a 0" to "It is a 9". */
    val teach: List<Button> = (0 until Guess.DIGITS).map { addTeachButton(it) }

    init {
        if (resources.configuration.fontScale > LARGE) {
            // Large text leaves no room for the version beside the title.
            root.find<LinearLayout>(R.id.header).apply {
                orientation = LinearLayout.VERTICAL
                gravity = Gravity.START
            }
            view(R.id.page_title).layoutParams =
                LinearLayout.LayoutParams(ViewGroup.LayoutParams.MATCH_PARENT, ViewGroup.LayoutParams.WRAP_CONTENT)
        }
    }

    /** Show this. */
    fun show(state: DemoState) {
        showFrame(state)
        showDrawing(state)
        showStored(state)
        showStanding(state)
        showChoice(state)
        showPrivacy(state)
        showRounds(state)
    }

    // ---- what every page has

    private fun showFrame(state: DemoState) {
        view(R.id.page_draw).visible(state.page == Page.DRAW)
        view(R.id.page_stored).visible(state.page == Page.STORED)
        view(R.id.page_learn).visible(state.page == Page.LEARN)
        view(R.id.tab_draw).isSelected = state.page == Page.DRAW
        view(R.id.tab_stored).isSelected = state.page == Page.STORED
        view(R.id.tab_learn).isSelected = state.page == Page.LEARN
        text(
            R.id.page_title,
            when (state.page) {
                Page.DRAW -> string(R.string.title_draw)
                Page.STORED -> string(R.string.title_stored)
                Page.LEARN -> string(R.string.title_learn)
            },
        )
        val version = state.modelVersion ?: 0
        val (name, description) = when {
            state.modelProblem != null -> string(R.string.model_none) to string(R.string.model_none_description)
            version == 0 -> string(R.string.model_starting) to string(R.string.model_starting_description)
            else -> string(R.string.model_version, version) to string(R.string.model_version_description, version)
        }
        text(R.id.model, name)
        view(R.id.model).contentDescription = description
        // What the person just did comes first.
        val news = state.problem ?: when (state.notice) {
            Notice.CUT_OFF -> string(R.string.notice_cut_off)
            Notice.REPLACED -> string(R.string.notice_replaced)
            Notice.WITHDRAWN -> string(R.string.notice_withdrawn)
            null -> null
        }
        val isGood = state.problem == null && state.notice == Notice.WITHDRAWN
        val (colour, ground) = if (isGood) R.color.accent to R.color.soft else R.color.warning to R.color.warning_soft
        text(R.id.problem, news.orEmpty())
        val icon = if (isGood) R.drawable.ic_check else R.drawable.ic_warning
        root.find<TextView>(R.id.problem).apply {
            setCompoundDrawablesRelativeWithIntrinsicBounds(icon, 0, 0, 0)
            compoundDrawableTintList = ColorStateList.valueOf(context.getColor(colour))
        }
        root.find<TextView>(R.id.dismiss).setTextColor(context.getColor(colour))
        view(R.id.banner).backgroundTintList = ColorStateList.valueOf(context.getColor(ground))
        view(R.id.banner).visible(news != null)
    }

    // ---- drawing

    private fun showDrawing(state: DemoState) {
        pad.drawing = state.drawing
        view(R.id.pad_hint).visible(state.drawing.isEmpty)
        view(R.id.wipe).visible(!state.drawing.isEmpty)
        val guess = state.guess
        val (words, more) = when {
            state.modelProblem == ModelProblem.NO_RUNTIME ->
                string(R.string.guess_no_runtime) to string(R.string.model_no_runtime)
            state.modelProblem == ModelProblem.BAD_MODEL -> string(R.string.guess_bad) to string(R.string.model_bad)
            guess == null -> string(R.string.guess_none) to string(R.string.guess_none_more)
            guess.confidence < SURE ->
                string(R.string.guess_unsure, guess.digit) to string(R.string.guess_unsure_more, percent(guess.confidence))
            else -> string(R.string.guess_words, guess.digit) to string(R.string.guess_more, percent(guess.confidence))
        }
        text(R.id.guess, guess?.digit?.toString() ?: "?")
        view(R.id.guess).visible(state.modelProblem == null)
        text(R.id.guess_words, words)
        text(R.id.guess_more, more)
        val bars = root.find<Bars>(R.id.probabilities)
        bars.visible(state.modelProblem == null)
        val shares = guess?.probabilities ?: List(Guess.DIGITS) { 0f }
        bars.shares = shares
        bars.contentDescription = string(
            R.string.probabilities_description,
            shares.mapIndexed { digit, share -> string(R.string.probability, digit, percent(share)) }.joinToString(),
        )
        val canTeach = !state.drawing.isEmpty && state.taught == null
        teach.forEach { it.isEnabled = canTeach }
        text(
            R.id.taught,
            when {
                state.taught != null -> string(R.string.taught, state.taught)
                state.drawing.isEmpty -> string(R.string.teach_empty)
                else -> string(R.string.teach_words)
            },
        )
    }

    private fun addTeachButton(digit: Int): Button {
        val row = root.find<ViewGroup>(if (digit < Guess.DIGITS / 2) R.id.teach_first else R.id.teach_second)
        val button = Button(context, null, 0, R.style.Action)
        button.text = digit.toString()
        button.textSize = DIGIT_SP
        button.contentDescription = string(R.string.teach_description, digit)
        button.setBackgroundResource(R.drawable.digit_button)
        button.setTextColor(context.getColorStateList(R.color.action))
        button.setPadding(0, 0, 0, 0)
        button.minHeight = resources.getDimensionPixelSize(R.dimen.digit)
        val place = LinearLayout.LayoutParams(0, ViewGroup.LayoutParams.WRAP_CONTENT, 1f)
        if (row.childCount > 0) place.marginStart = resources.getDimensionPixelSize(R.dimen.gap)
        row.addView(button, place)
        return button
    }

    // ---- what is stored

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
        for (id in listOf(R.id.stored_none, R.id.draw_one)) view(id).visible(number == 0)
        for (id in listOf(R.id.counts, R.id.seen, R.id.erase)) view(id).visible(number > 0)
        val counts = state.counts
        val bars = root.find<Bars>(R.id.counts)
        val most = counts.max().coerceAtLeast(1)
        bars.shares = counts.map { it / most.toFloat() }
        bars.values = counts.map { if (it == 0) "" else it.toString() }
        bars.contentDescription = string(
            R.string.counts_description,
            counts.mapIndexed { digit, count -> string(R.string.count, digit, count) }.joinToString(),
        )
        val newest = state.examples.asReversed().toList()
        val thumbnails = root.find<Thumbnails>(R.id.thumbnails)
        thumbnails.examples = newest
        thumbnails.contentDescription =
            string(R.string.thumbnails_description, newest.take(NAMED_EXAMPLES).joinToString { it.digit.toString() })
    }

    // ---- taking part

    private class Standing(val icon: Int, val title: String, val words: String, val isGood: Boolean = true)

    private fun showStanding(state: DemoState) {
        val standing = standing(state)
        badge(root.find(R.id.learn_badge), standing.icon, standing.isGood)
        text(R.id.learn_title, standing.title)
        text(R.id.learn_words, standing.words)
        val progress = state.progress
        view(R.id.progress_row).visible(progress != null)
        if (progress != null) {
            root.find<ProgressBar>(R.id.progress).progress = (progress.share * BAR_STEPS).roundToInt()
            text(
                R.id.progress_words,
                string(R.string.progress_words, progress.done, progress.steps, percent(progress.share)),
            )
        }
        val conditions = if (state.mayTrain) conditions(state) else ""
        text(R.id.conditions, conditions)
        view(R.id.conditions).visible(conditions.isNotEmpty())
        view(R.id.train_now).visible(state.mayTrain)
        view(R.id.train_now).isEnabled = state.canTrainNow
    }

    private fun standing(state: DemoState): Standing {
        val trouble = state.trouble
        val refused = state.refused
        return when {
            state.modelProblem == ModelProblem.NO_RUNTIME ->
                Standing(R.drawable.ic_warning, string(R.string.learn_title_no_runtime), string(R.string.model_no_runtime), false)
            !state.consenting ->
                Standing(R.drawable.ic_together, string(R.string.learn_title_out), string(R.string.learn_words_out))
            trouble != null -> Standing(R.drawable.ic_warning, title(trouble.kind), words(trouble, state.coordinator), false)
            state.progress != null -> Standing(
                R.drawable.ic_phone,
                string(R.string.learn_title_training),
                string(R.string.learn_words_training, state.progress.round),
            )
            state.running -> Standing(
                R.drawable.ic_wait,
                string(R.string.learn_title_connected),
                state.waiting?.let { string(R.string.learn_words_deferred, it) }
                    ?: string(R.string.learn_words_connected, host(state.coordinator)),
            )
            refused?.isUnusable == true ->
                Standing(R.drawable.ic_warning, string(R.string.learn_title_unusable), string(meaning(refused.reason)), false)
            refused?.isOverBudget == true ->
                Standing(R.drawable.ic_stop, string(R.string.learn_title_spent), string(R.string.learn_words_spent), false)
            else -> Standing(R.drawable.ic_wait, string(R.string.learn_title_waiting), string(R.string.learn_words_waiting))
        }
    }

    private fun title(kind: Trouble.Kind): String = string(
        when (kind) {
            Trouble.Kind.FAILED -> R.string.learn_title_failed
            Trouble.Kind.UNREACHABLE -> R.string.learn_title_unreachable
            Trouble.Kind.REVOKED -> R.string.learn_title_revoked
            Trouble.Kind.EXPIRED -> R.string.learn_title_expired
        },
    )

    private fun words(trouble: Trouble, coordinator: String): String = when (trouble.kind) {
        Trouble.Kind.FAILED -> string(R.string.learn_words_failed, trouble.detail.trimEnd('.'))
        Trouble.Kind.UNREACHABLE -> string(R.string.learn_words_unreachable, host(coordinator), trouble.detail)
        Trouble.Kind.REVOKED -> string(R.string.learn_words_revoked)
        Trouble.Kind.EXPIRED -> string(R.string.learn_words_expired)
    }

    private fun conditions(state: DemoState): String {
        val missing = DemoState.FEWEST_EXAMPLES - state.examples.size
        return when {
            missing > 0 -> resources.getQuantityString(R.plurals.conditions_few, missing, missing)
            state.objections.isNotEmpty() ->
                string(R.string.conditions_not, state.objections.joinToString { string(words(it)) })
            else -> string(R.string.conditions_good)
        }
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

    private fun showChoice(state: DemoState) {
        val invited = state.coordinator.isNotEmpty()
        text(R.id.choice_title, string(if (state.consenting) R.string.choice_title_in else R.string.choice_title_out))
        view(R.id.facts).visible(!state.consenting)
        text(
            R.id.invitation,
            when {
                state.consenting -> string(R.string.invitation_in, host(state.coordinator))
                invited -> string(R.string.invitation, host(state.coordinator))
                else -> string(R.string.invitation_none)
            },
        )
        view(R.id.consent).visible(!state.consenting && invited)
        view(R.id.invite).visible(!state.consenting || state.trouble?.needsInvitation == true)
        val invite = root.find<Button>(R.id.invite)
        text(R.id.invite, string(if (invited) R.string.invite_new else R.string.invite))
        // The next thing to do stands out.
        val isNext = !invited || state.trouble?.needsInvitation == true
        invite.setBackgroundResource(if (isNext) R.drawable.main_button else R.drawable.outlined_button)
        invite.setTextColor(context.getColorStateList(if (isNext) R.color.main_text else R.color.action))
        view(R.id.withdraw).visible(state.consenting)
    }

    private fun showPrivacy(state: DemoState) {
        view(R.id.privacy).visible(state.consenting)
        text(R.id.budget_title, string(R.string.budget_title, number(state.epsilonSpent), number(state.epsilonLimit)))
        root.find<ProgressBar>(R.id.budget).progress = (state.budgetShare * BAR_STEPS).roundToInt()
        text(R.id.budget_words, string(R.string.budget_words, String.format(locale, "%.0e", state.delta)))
    }

    private fun showRounds(state: DemoState) {
        view(R.id.rounds_card).visible(state.consenting)
        view(R.id.rounds_none).visible(state.rounds.isEmpty())
        val list = root.find<LinearLayout>(R.id.rounds)
        list.removeAllViews()
        val inflater = LayoutInflater.from(context)
        for (round in state.rounds) {
            val row = inflater.inflate(R.layout.round, list, false)
            val stage = round.stage
            val (icon, title) = when (stage) {
                is Stage.Trained -> R.drawable.ic_phone to R.string.round_trained_title
                is Stage.Shared -> R.drawable.ic_send to R.string.round_shared_title
                is Stage.Finished -> R.drawable.ic_check to R.string.round_finished_title
                is Stage.Refused -> R.drawable.ic_stop to R.string.round_refused_title
            }
            badge(row.find(R.id.round_badge), icon, stage !is Stage.Refused)
            row.find<TextView>(R.id.round_title).text = string(title, round.number)
            row.find<TextView>(R.id.round_words).text = words(stage)
            val receipt = row.find<TextView>(R.id.round_receipt)
            val id = when (stage) {
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
        is Stage.Shared ->
            string(R.string.round_shared, Formatter.formatShortFileSize(context, stage.bytes.toLong()), number(stage.epsilon))
        is Stage.Finished -> string(R.string.round_finished, stage.version, number(stage.epsilon))
        is Stage.Refused -> string(R.string.refused_detail, string(meaning(stage.reason)), stage.detail)
    }

    /** What the protocol's word for a refusal means to a person. */
    private fun meaning(reason: String): Int = when (reason) {
        "bundle_invalid", "suite_unsupported" -> R.string.refused_bundle
        "over_memory_budget" -> R.string.refused_memory
        "epsilon_too_large", "participation_cap" -> R.string.refused_budget
        "cohort_too_small", "noise_too_small" -> R.string.refused_weak
        "training_failed" -> R.string.refused_training
        "not_enough_examples" -> R.string.refused_examples
        else -> R.string.refused_other
    }

    // ---- helpers

    private val locale: Locale get() = resources.configuration.locales[0]

    private fun badge(view: ImageView, icon: Int, isGood: Boolean) {
        view.setImageResource(icon)
        view.imageTintList = ColorStateList.valueOf(context.getColor(if (isGood) R.color.accent else R.color.warning))
        view.backgroundTintList = ColorStateList.valueOf(context.getColor(if (isGood) R.color.soft else R.color.warning_soft))
    }

    /** A broker's address without what a person does not care about. */
    private fun host(coordinator: String): String = coordinator.substringAfter("://").substringBefore(':').substringAfter('@')

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
        const val LARGE = 1.3f
        const val NAMED_EXAMPLES = 12
        const val BAR_STEPS = 1000
        const val DIGIT_SP = 20f
    }
}
