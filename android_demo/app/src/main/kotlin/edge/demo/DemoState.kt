package edge.demo

import edge.android.Objection

/** A digit that the person drew and named. Equal to another with the same pixels and name. */
data class Example(val pixels: List<Float>, val digit: Int)

/** The three pages. */
enum class Page { DRAW, STORED, LEARN }

/** Why there is no model to predict with. */
enum class ModelProblem {
    /** The build holds no ONNX Runtime for this phone's processor. */
    NO_RUNTIME,

    /** The model's file was damaged, or not signed by the publisher. */
    BAD_MODEL,
}

/** How far a round has come on this phone. */
sealed interface Stage {
    /** The model has learned from [examples] here; nothing left the phone yet. */
    data class Trained(val examples: Int) : Stage

    /** A clipped, noised and masked update of [bytes] left the phone; [receipt] is the beginning of its SHA-256. */
    data class Shared(val bytes: Int, val receipt: String, val epsilon: Double) : Stage

    /** The round's new model is here. */
    data class Finished(val version: Int, val receipt: String?, val epsilon: Double) : Stage

    /** The phone did not take part, or the round was given up; [reason] in words. */
    data class Refused(val reason: String) : Stage
}

/** One round as the person sees it. */
data class Round(val number: Int, val stage: Stage)

/** What happened on the learning side. */
sealed interface Learned {
    /** A round's stage changed; a round that is not known yet begins. */
    data class RoundChanged(val round: Round) : Learned

    /** A model is installed: its version, and whether it predicts. */
    data class ModelChanged(val version: Int?, val problem: ModelProblem?) : Learned

    /** The privacy ledger: [spent] of at most [limit] epsilon at that [delta]. */
    data class PrivacyChanged(val spent: Double, val limit: Double, val delta: Double) : Learned

    /** The phone would take part, but not now; [reason] in words. */
    data class Waiting(val reason: String) : Learned

    /** A training job runs, or has ended; [problem] says what went wrong. */
    data class RunChanged(val running: Boolean, val problem: String?) : Learned
}

/**
 * All that the screens show. Immutable; [after] says what happens to it.
 *
 * @property guess for [drawing]; null where it is empty or nothing can predict.
 * @property taught the digit that the last example was stored as, until the person draws again.
 * @property consenting whether the person takes part.
 * @property coordinator of the invitation that is open; empty for none.
 * @property waiting why a running job does not train yet.
 * @property problem what went wrong with the last thing that the person did.
 * @property objections why the phone would not train now.
 * @property rounds newest first.
 */
data class DemoState(
    val page: Page = Page.DRAW,
    val drawing: Drawing = Drawing(),
    val guess: Guess? = null,
    val taught: Int? = null,
    val modelVersion: Int? = null,
    val modelProblem: ModelProblem? = null,
    val examples: List<Example> = emptyList(),
    val consenting: Boolean = false,
    val objections: List<Objection> = emptyList(),
    val coordinator: String = "",
    val running: Boolean = false,
    val runProblem: String? = null,
    val waiting: String? = null,
    val rounds: List<Round> = emptyList(),
    val epsilonSpent: Double = 0.0,
    val epsilonLimit: Double = DEFAULT_EPSILON,
    val delta: Double = DEFAULT_DELTA,
    val problem: String? = null,
) {
    /** How many examples there are of each digit. */
    val counts: List<Int> get() = (0 until Guess.DIGITS).map { digit -> examples.count { it.digit == digit } }

    /** Whether the person can have the phone train now. */
    val canTrainNow: Boolean
        get() = consenting && !running && examples.size >= FEWEST_EXAMPLES && objections.isEmpty()

    /** How much of the privacy budget is spent, 0 to 1. */
    val budgetShare: Float get() = (epsilonSpent / epsilonLimit).coerceIn(0.0, 1.0).toFloat()

    /** The state after something happened on the learning side. */
    fun after(learned: Learned): DemoState = when (learned) {
        is Learned.RoundChanged -> copy(
            rounds = (listOf(learned.round) + rounds.filter { it.number != learned.round.number })
                .sortedByDescending { it.number }
                .take(ROUNDS_SHOWN),
        )
        is Learned.ModelChanged -> copy(modelVersion = learned.version, modelProblem = learned.problem)
        is Learned.PrivacyChanged ->
            copy(epsilonSpent = learned.spent, epsilonLimit = learned.limit, delta = learned.delta)
        is Learned.Waiting -> copy(waiting = learned.reason)
        is Learned.RunChanged -> copy(running = learned.running, runProblem = learned.problem, waiting = null)
    }

    /** What is left when the person withdraws: nothing of theirs. The app, its page and its model stay. */
    fun withdrawn(): DemoState = DemoState(
        page = page,
        modelVersion = modelVersion,
        modelProblem = modelProblem,
        objections = objections,
        epsilonLimit = epsilonLimit,
        delta = delta,
    )

    companion object {
        /** Below this, an update would say too much about a few digits, and teach little. */
        const val FEWEST_EXAMPLES: Int = 5

        /** Older rounds are in the ledger, but not on the screen. */
        const val ROUNDS_SHOWN: Int = 50

        /** The epsilon that this app's device policy allows a task at most. */
        const val DEFAULT_EPSILON: Double = 4.0

        /** The delta of [DEFAULT_EPSILON]. */
        const val DEFAULT_DELTA: Double = 1e-5
    }
}
