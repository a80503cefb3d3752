package edge.demo

import edge.EdgeError
import edge.IdentityError
import edge.android.Conditions
import edge.android.Eligibility

/** Predicts digits. */
interface DigitModel {
    /** Which model serves; null where none can. */
    val version: Int?

    /** Why none can; null where one does. */
    val problem: ModelProblem?

    /** What had to be repaired when the model was opened; null where nothing. */
    val notice: Notice?

    /** The logits for [Drawing.SIDE] x [Drawing.SIDE] pixels; null where there is a [problem]. */
    fun predict(pixels: FloatArray): FloatArray?
}

/** Where the person's examples are kept. Each method throws [EdgeError] where the storage fails. */
interface ExampleShelf {
    /** All of them, oldest first. */
    fun all(): List<Example>

    /** Keep one more. */
    fun add(example: Example)

    /** Erase them all. */
    fun clear()
}

/** The app's choices that outlive it. Throws [EdgeError] where the storage fails. */
interface Choices {
    /** Whether the person takes part. */
    var consenting: Boolean

    /** The text of the [Invitation] that the person opened; null for none. */
    var invitation: String?
}

/** The learning side: what a person can ask of it. It answers with [Learned]. */
interface Learning {
    /**
     * Look now and then whether the coordinator wants this phone; with another invitation than before, by that one from now on.
     *
     * Throws EdgeError where the invitation is no good.
     */
    fun join(invitation: Invitation)

    /** Look once, soon. */
    fun trainNow()

    /** Stop; erase identity, keys, pending updates and the ledger of what was shared. */
    fun withdraw()
}

/**
 * The app, without the phone: takes what the person does, keeps it, and gives the state to show. One thread at a time.
 *
 * @param show is told every new state.
 */
class Demo(
    private val model: DigitModel,
    private val shelf: ExampleShelf,
    private val choices: Choices,
    private val learning: Learning,
    private val eligibility: Eligibility,
    private val conditions: () -> Conditions,
    private val show: (DemoState) -> Unit,
) {
    /** What is shown. */
    var state: DemoState = DemoState()
        private set(value) {
            if (field == value) return
            field = value
            show(value)
        }

    /** Read what is stored, and show it. */
    fun start() {
        val begun = DemoState(modelVersion = model.version, modelProblem = model.problem, notice = model.notice)
        state = begun
        guarded {
            val invitation = choices.invitation?.let(Invitation::parse)
            state = state.copy(consenting = choices.consenting, coordinator = invitation?.coordinator.orEmpty())
            // First, since it opens the examples for itself.
            if (invitation != null && state.consenting) {
                try {
                    learning.join(invitation)
                } catch (error: IdentityError) {
                    // It was good when it was opened.
                    state = state.copy(trouble = Trouble(Trouble.Kind.EXPIRED, words(error)))
                }
            }
            state = state.copy(examples = shelf.all())
        }
        refreshConditions()
        show(state)
    }

    /** Ask the phone again whether it would train. */
    fun refreshConditions() {
        state = state.copy(objections = eligibility.now().objections(conditions()))
    }

    /** Another page. */
    fun open(page: Page) {
        refreshConditions()
        state = state.copy(page = page)
    }

    /** The finger came down. */
    fun begin(at: Point) {
        // After an example was stored the pad is ready for the next one.
        val drawing = if (state.taught == null) state.drawing else Drawing()
        draw(drawing.begun(at))
    }

    /** The finger moved. */
    fun move(to: Point) {
        draw(state.drawing.continued(to))
    }

    /** An empty pad. */
    fun wipe() {
        state = state.copy(drawing = Drawing(), guess = null, taught = null)
    }

    /** The drawing is this digit: keep it as an example. */
    fun teach(digit: Int) {
        require(digit in 0 until Guess.DIGITS) { "$digit is no digit" }
        val pixels = state.drawing.pixels() ?: return
        if (state.taught != null) return
        val example = Example(pixels.toList(), digit)
        guarded {
            shelf.add(example)
            state = state.copy(examples = shelf.all(), taught = digit)
        }
    }

    /** Erase the examples, and nothing else. */
    fun eraseExamples() {
        guarded {
            shelf.clear()
            state = state.copy(examples = emptyList(), taught = null)
        }
    }

    /** The person opened an invitation; nothing is sent before [consent]. Who takes part already goes on with the new one. */
    fun invite(text: String) {
        guarded {
            val invitation = Invitation.parse(text)
            if (state.consenting) learning.join(invitation)
            choices.invitation = text
            state = state.copy(coordinator = invitation.coordinator, trouble = null)
        }
    }

    /** The person has read the problem or the notice. */
    fun dismiss() {
        state = if (state.problem != null) state.copy(problem = null) else state.copy(notice = null)
    }

    /** The person takes part from now on. */
    fun consent() {
        if (state.notice == Notice.WITHDRAWN) dismiss()
        guarded {
            val invitation = choices.invitation?.let(Invitation::parse) ?: return@guarded
            learning.join(invitation)
            choices.consenting = true
            state = state.copy(consenting = true)
        }
    }

    /** The person takes part no more: everything of theirs is erased. */
    fun withdraw() {
        guarded {
            // First what sends, then what could be sent, then the note that somebody took part.
            learning.withdraw()
            shelf.clear()
            choices.invitation = null
            choices.consenting = false
            state = state.withdrawn().copy(modelVersion = model.version)
        }
    }

    /** The person wants the phone to train now. */
    fun trainNow() {
        refreshConditions()
        if (state.canTrainNow) learning.trainNow()
    }

    /** Something happened on the learning side. */
    fun learned(learned: Learned) {
        state = state.after(learned)
        // A new model sees the drawing on the pad with other eyes.
        if (learned is Learned.ModelChanged) state = state.copy(guess = guess(state.drawing))
    }

    private fun draw(drawing: Drawing) {
        state = state.copy(drawing = drawing, guess = guess(drawing), taught = null)
    }

    private fun guess(drawing: Drawing): Guess? = drawing.pixels()?.let { model.predict(it) }?.let { Guess.of(it) }

    private fun guarded(action: () -> Unit) {
        state = try {
            action()
            state.copy(problem = null)
        } catch (error: EdgeError) {
            state.copy(problem = words(error))
        }
    }

    private fun words(error: EdgeError): String = listOf(error.message, error.hint).filter { !it.isNullOrEmpty() }
        .joinToString(". ", postfix = ".") { it.orEmpty().replaceFirstChar(Char::uppercaseChar) }
}
