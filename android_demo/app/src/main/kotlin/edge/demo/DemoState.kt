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

    /** The phone did not take part, or gave the round up; [reason] is the protocol's word for it, [detail] a sentence. */
    data class Refused(val reason: String, val detail: String) : Stage {
        /** Whether the round's model is nothing for this phone: damaged, of operators it does not know, or too large. */
        val isUnusable: Boolean get() = reason in setOf("bundle_invalid", "suite_unsupported", "over_memory_budget")

        /** Whether another round would tell more than the person's privacy budget allows. */
        val isOverBudget: Boolean get() = reason in setOf("epsilon_too_large", "participation_cap")
    }
}

/** One round as the person sees it. */
data class Round(val number: Int, val stage: Stage)

/** How far a round's training is: [done] of [steps]. */
data class Progress(val round: Int, val done: Int, val steps: Int) {
    /** 0 to 1. */
    val share: Float get() = (done.toFloat() / steps.coerceAtLeast(1)).coerceIn(0f, 1f)
}

/** What keeps the phone from taking part; [detail] in the words of whoever noticed. */
data class Trouble(val kind: Kind, val detail: String) {
    /** What can be done about it. */
    enum class Kind {
        /** It goes away by itself: another try follows. */
        FAILED,

        /** The broker does not answer; the phone keeps trying. */
        UNREACHABLE,

        /** The broker says that this phone's certificate was revoked: it takes a new invitation. */
        REVOKED,

        /** The certificate's time is over, or the phone's clock is wrong. */
        EXPIRED,
    }

    /** Whether only a new invitation helps. */
    val needsInvitation: Boolean get() = kind == Kind.REVOKED || kind == Kind.EXPIRED
}

/** What the person should know once. */
enum class Notice {
    /** The process ended in the middle of an installation; the model before it serves. */
    CUT_OFF,

    /** What was installed was damaged; the model that the app came with serves. */
    REPLACED,

    /** The person withdrew, and everything of theirs is erased. */
    WITHDRAWN,
}

/** What happened on the learning side. */
sealed interface Learned {
    /** A round's stage changed; a round that is not known yet begins. */
    data class RoundChanged(val round: Round) : Learned

    /** A round's training is under way. */
    data class ProgressChanged(val progress: Progress) : Learned

    /** The phone cannot take part. */
    data class TroubleChanged(val trouble: Trouble) : Learned

    /** The broker answers again. */
    object Connected : Learned {
        override fun toString(): String = "Connected"
    }

    /** A model is installed: its version, and whether it predicts. */
    data class ModelChanged(val version: Int?, val problem: ModelProblem?) : Learned

    /** The privacy ledger: [spent] of at most [limit] epsilon at that [delta]. */
    data class PrivacyChanged(val spent: Double, val limit: Double, val delta: Double) : Learned

    /** The phone would take part, but not now; [reason] in words. */
    data class Waiting(val reason: String) : Learned

    /** A training job runs, or has ended; [trouble] says what went wrong. */
    data class RunChanged(val running: Boolean, val trouble: Trouble?) : Learned
}

/**
 * All that the screens show. Immutable; [after] says what happens to it.
 *
 * @property guess for [drawing]; null where it is empty or nothing can predict.
 * @property taught the digit that the last example was stored as, until the person draws again.
 * @property consenting whether the person takes part.
 * @property coordinator of the invitation that is open; empty for none.
 * @property waiting why a running job does not train yet.
 * @property progress of the training that runs; null where none does.
 * @property trouble what keeps the phone from taking part.
 * @property notice what the person should know, until it was read.
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
    val trouble: Trouble? = null,
    val waiting: String? = null,
    val progress: Progress? = null,
    val notice: Notice? = null,
    val rounds: List<Round> = emptyList(),
    val epsilonSpent: Double = 0.0,
    val epsilonLimit: Double = DEFAULT_EPSILON,
    val delta: Double = DEFAULT_DELTA,
    val problem: String? = null,
) {
    /** How many examples there are of each digit. */
    val counts: List<Int> get() = (0 until Guess.DIGITS).map { digit -> examples.count { it.digit == digit } }

    /** What the phone answered to the newest round, if it refused that one. */
    val refused: Stage.Refused? get() = rounds.firstOrNull()?.stage as? Stage.Refused

    /** Whether training is a question of the moment only: nothing is in its way that the moment does not change. */
    val mayTrain: Boolean
        get() = consenting && !running && modelProblem != ModelProblem.NO_RUNTIME && trouble?.needsInvitation != true &&
            refused?.isOverBudget != true

    /** Whether the person can have the phone train now. */
    val canTrainNow: Boolean
        get() = mayTrain && examples.size >= FEWEST_EXAMPLES && objections.isEmpty()

    /** How much of the privacy budget is spent, 0 to 1. */
    val budgetShare: Float get() = (epsilonSpent / epsilonLimit).coerceIn(0.0, 1.0).toFloat()

    /** The state after something happened on the learning side. */
    fun after(learned: Learned): DemoState = when (learned) {
        is Learned.RoundChanged -> copy(
            progress = null,
            rounds = (listOf(learned.round) + rounds.filter { it.number != learned.round.number })
                .sortedByDescending { it.number }
                .take(ROUNDS_SHOWN),
        )
        is Learned.ModelChanged -> copy(modelVersion = learned.version, modelProblem = learned.problem)
        is Learned.PrivacyChanged ->
            copy(epsilonSpent = learned.spent, epsilonLimit = learned.limit, delta = learned.delta)
        is Learned.ProgressChanged -> copy(progress = learned.progress, waiting = null, trouble = null)
        // A refused connection looks like a broken one now and then: the first is the one to act upon.
        is Learned.TroubleChanged ->
            if (trouble?.needsInvitation == true && !learned.trouble.needsInvitation) this else copy(trouble = learned.trouble)
        is Learned.Connected -> copy(trouble = null)
        is Learned.Waiting -> copy(waiting = learned.reason)
        is Learned.RunChanged -> copy(
            running = learned.running,
            // A run that begins does not know yet whether what was in the way is gone: a connection does.
            trouble = learned.trouble ?: trouble?.takeIf { !learned.running || it.kind != Trouble.Kind.FAILED },
            waiting = null,
            progress = null,
        )
    }

    /** What is left when the person withdraws: nothing of theirs. The app, its page and its model stay. */
    fun withdrawn(): DemoState = DemoState(
        page = page,
        modelVersion = modelVersion,
        modelProblem = modelProblem,
        objections = objections,
        epsilonLimit = epsilonLimit,
        delta = delta,
        notice = Notice.WITHDRAWN,
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
