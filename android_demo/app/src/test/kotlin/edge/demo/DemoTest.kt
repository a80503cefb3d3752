package edge.demo

import edge.IdentityError
import edge.android.Conditions
import edge.android.Eligibility
import edge.android.Objection
import org.junit.jupiter.api.Assertions.assertEquals
import org.junit.jupiter.api.Assertions.assertFalse
import org.junit.jupiter.api.Assertions.assertNotNull
import org.junit.jupiter.api.Assertions.assertNull
import org.junit.jupiter.api.Assertions.assertThrows
import org.junit.jupiter.api.Assertions.assertTrue
import org.junit.jupiter.api.Test

class DemoTest {
    private val asked = mutableListOf<String>()
    private val shown = mutableListOf<DemoState>()
    private val model = FakeModel()
    private val shelf = FakeShelf()
    private val choices = FakeChoices()
    private var phone = Conditions(charging = true, connected = true, metered = false, idle = false)
    private val demo = Demo(model, shelf, choices, FakeLearning(asked), Eligibility(), { phone }, { shown += it })

    private val joined = "join mqtts://fl.example.com:8883"
    private val invitation = FakeLearning.INVITATION

    private fun draw() {
        demo.begin(Point(0.5f, 0.1f))
        demo.move(Point(0.5f, 0.9f))
    }

    private fun consentWithExamples() {
        demo.start()
        repeat(DemoState.FEWEST_EXAMPLES) {
            draw()
            demo.teach(1)
        }
        demo.invite(invitation)
        demo.consent()
    }

    @Test
    fun `the model looks while the finger moves, and forgets when the pad is wiped`() {
        demo.start()
        demo.begin(Point(0.5f, 0.1f))
        assertEquals(3, demo.state.guess?.digit)
        demo.wipe()
        assertNull(demo.state.guess)
        assertTrue(demo.state.drawing.isEmpty)
    }

    @Test
    fun `an answer is stored once, and the next stroke begins a new drawing`() {
        demo.start()
        draw()
        demo.teach(7)
        demo.teach(7)
        assertEquals(listOf(7), shelf.kept.map { it.digit })
        assertEquals(7, demo.state.taught)
        demo.begin(Point(0.2f, 0.2f))
        assertEquals(1, demo.state.drawing.strokes.size)
        assertNull(demo.state.taught)
    }

    @Test
    fun `an empty pad teaches nothing, and no other number is a digit`() {
        demo.start()
        demo.teach(7)
        assertEquals(emptyList<Example>(), shelf.kept)
        draw()
        assertThrows(IllegalArgumentException::class.java) { demo.teach(10) }
    }

    @Test
    fun `a full phone is told in words, and the example is not claimed to be stored`() {
        demo.start()
        draw()
        shelf.full = true
        demo.teach(7)
        assertEquals("Cannot write example-1: no space left. Free some storage.", demo.state.problem)
        assertNull(demo.state.taught)
        shelf.full = false
        demo.teach(7)
        assertNull(demo.state.problem)
    }

    @Test
    fun `a file that is no invitation is told, and changes nothing`() {
        demo.start()
        demo.invite("a shopping list")
        assertEquals(
            "This file does not say where the coordinator is. Ask whoever invited you for the file again.",
            demo.state.problem,
        )
        assertNull(choices.invitation)
    }

    @Test
    fun `nothing is asked of the learning side before consent`() {
        demo.start()
        draw()
        demo.teach(1)
        demo.open(Page.LEARN)
        demo.trainNow()
        assertEquals(emptyList<String>(), asked)
    }

    @Test
    fun `consent is kept, joins, and lets the person train once there are examples`() {
        demo.start()
        demo.consent()
        assertFalse(demo.state.consenting)
        demo.invite(invitation)
        assertFalse(demo.state.consenting)
        demo.consent()
        assertFalse(demo.state.canTrainNow)
        demo.trainNow()
        assertEquals(listOf(joined), asked)
        consentWithExamples()
        assertEquals(invitation, choices.invitation)
        assertEquals("mqtts://fl.example.com:8883", demo.state.coordinator)
        assertTrue(demo.state.canTrainNow)
        demo.trainNow()
        assertEquals("train now", asked.last())
    }

    @Test
    fun `training now does not need an idle phone, but power and a free network`() {
        consentWithExamples()
        phone = phone.copy(charging = false, metered = true)
        demo.trainNow()
        assertEquals(listOf(Objection.NOT_CHARGING, Objection.METERED), demo.state.objections)
        assertFalse("train now" in asked)
    }

    @Test
    fun `withdrawing erases first what sends, then what could be sent, and shows nothing of it`() {
        consentWithExamples()
        demo.learned(Learned.RoundChanged(Round(4, Stage.Shared(5_000, "abcd", 0.5))))
        demo.learned(Learned.PrivacyChanged(0.5, 4.0, 1e-5))
        demo.withdraw()
        assertEquals("withdraw", asked.last())
        assertEquals(emptyList<Example>(), shelf.kept)
        assertFalse(choices.consenting)
        assertNull(choices.invitation)
        assertEquals("", demo.state.coordinator)
        assertEquals(Notice.WITHDRAWN, demo.state.notice)
        assertEquals(emptyList<Round>(), demo.state.rounds)
        assertEquals(0.0, demo.state.epsilonSpent)
        assertEquals(0, demo.state.modelVersion)
    }

    @Test
    fun `a round is one row that moves on, the newest first`() {
        demo.start()
        demo.learned(Learned.RoundChanged(Round(4, Stage.Trained(8))))
        demo.learned(Learned.RoundChanged(Round(5, Stage.Trained(8))))
        demo.learned(Learned.RoundChanged(Round(4, Stage.Shared(5_000, "abcd", 0.25))))
        demo.learned(Learned.RoundChanged(Round(4, Stage.Finished(5, "abcd", 0.25))))
        assertEquals(
            listOf(Round(5, Stage.Trained(8)), Round(4, Stage.Finished(5, "abcd", 0.25))),
            demo.state.rounds,
        )
    }

    @Test
    fun `a run that waits says why, one that ended does not, one that failed what went wrong`() {
        consentWithExamples()
        demo.learned(Learned.RunChanged(true, null))
        demo.learned(Learned.Waiting("not charging"))
        assertEquals("not charging", demo.state.waiting)
        assertFalse(demo.state.canTrainNow)
        val failed = Trouble(Trouble.Kind.FAILED, "no space left")
        demo.learned(Learned.RunChanged(false, failed))
        assertNull(demo.state.waiting)
        assertEquals(failed, demo.state.trouble)
        assertTrue(demo.state.canTrainNow)
        demo.learned(Learned.RunChanged(true, null))
        assertNull(demo.state.trouble)
    }

    @Test
    fun `training is shown step by step, and not when it is over`() {
        consentWithExamples()
        demo.learned(Learned.RunChanged(true, null))
        demo.learned(Learned.ProgressChanged(Progress(4, 10, 40)))
        assertEquals(0.25f, demo.state.progress?.share)
        demo.learned(Learned.RoundChanged(Round(4, Stage.Trained(8))))
        assertNull(demo.state.progress)
        demo.learned(Learned.ProgressChanged(Progress(5, 0, 40)))
        demo.learned(Learned.RunChanged(false, null))
        assertNull(demo.state.progress)
    }

    @Test
    fun `a spent budget ends training until a round fits again`() {
        consentWithExamples()
        demo.learned(Learned.RoundChanged(Round(7, Stage.Refused("epsilon_too_large", "it would come to epsilon 4.31, at most 4"))))
        assertFalse(demo.state.canTrainNow)
        assertTrue(demo.state.consenting)
        // Of another training, whose budget is its own.
        demo.learned(Learned.RoundChanged(Round(8, Stage.Trained(12))))
        assertTrue(demo.state.canTrainNow)
    }

    @Test
    fun `a revoked certificate stays said until a new invitation is opened, and what is stored stays`() {
        consentWithExamples()
        val revoked = Trouble(Trouble.Kind.REVOKED, "the broker says that this device's certificate was revoked")
        demo.learned(Learned.RunChanged(true, null))
        demo.learned(Learned.TroubleChanged(revoked))
        // What comes after it, and the next run, know less.
        demo.learned(Learned.TroubleChanged(Trouble(Trouble.Kind.UNREACHABLE, "connection reset")))
        demo.learned(Learned.RunChanged(false, null))
        demo.learned(Learned.RunChanged(true, null))
        demo.learned(Learned.RunChanged(false, null))
        assertEquals(revoked, demo.state.trouble)
        assertFalse(demo.state.canTrainNow)
        asked.clear()
        val other = invitation.replace("fl.example.com", "new.example.com")
        demo.invite(other)
        assertEquals(listOf("join mqtts://new.example.com:8883"), asked)
        assertEquals(other, choices.invitation)
        assertNull(demo.state.trouble)
        assertTrue(demo.state.canTrainNow)
        assertEquals(DemoState.FEWEST_EXAMPLES, demo.state.examples.size)
    }

    @Test
    fun `a broker that answers again is no trouble any more`() {
        consentWithExamples()
        demo.learned(Learned.TroubleChanged(Trouble(Trouble.Kind.UNREACHABLE, "no route to host")))
        demo.learned(Learned.RunChanged(false, null))
        assertEquals(Trouble.Kind.UNREACHABLE, demo.state.trouble?.kind)
        demo.learned(Learned.Connected)
        assertNull(demo.state.trouble)
    }

    @Test
    fun `an identity that ran out is said, and the examples are there all the same`() {
        consentWithExamples()
        val expired = object : Learning {
            override fun join(invitation: Invitation) = throw IdentityError("the certificate expired in May", "ask for another")
            override fun trainNow() = Unit
            override fun withdraw() = Unit
        }
        val again = Demo(model, shelf, choices, expired, Eligibility(), { phone }, {})
        again.start()
        assertEquals(Trouble(Trouble.Kind.EXPIRED, "The certificate expired in May. Ask for another."), again.state.trouble)
        assertEquals(DemoState.FEWEST_EXAMPLES, again.state.examples.size)
        assertNull(again.state.problem)
    }

    @Test
    fun `what the app repaired is said until it was read`() {
        model.notice = Notice.CUT_OFF
        demo.start()
        demo.invite("a shopping list")
        demo.dismiss()
        assertNull(demo.state.problem)
        assertEquals(Notice.CUT_OFF, demo.state.notice)
        demo.dismiss()
        assertNull(demo.state.notice)
    }

    @Test
    fun `a new model sees the drawing anew`() {
        demo.start()
        draw()
        model.favourite = 8
        demo.learned(Learned.ModelChanged(2, null))
        assertEquals(8, demo.state.guess?.digit)
        assertEquals(2, demo.state.modelVersion)
    }

    @Test
    fun `without a runtime the app still draws and stores, and says why it does not guess`() {
        model.problem = ModelProblem.NO_RUNTIME
        demo.start()
        draw()
        assertNull(demo.state.guess)
        assertEquals(ModelProblem.NO_RUNTIME, demo.state.modelProblem)
        demo.teach(1)
        assertEquals(1, shelf.kept.size)
    }

    @Test
    fun `what was stored is there when the app starts again, and it joins again`() {
        consentWithExamples()
        asked.clear()
        val again = Demo(model, shelf, choices, FakeLearning(asked), Eligibility(), { phone }, {})
        again.start()
        assertEquals(DemoState.FEWEST_EXAMPLES, again.state.examples.size)
        assertTrue(again.state.consenting)
        assertEquals(listOf(joined), asked)
    }

    @Test
    fun `probabilities sum to one and logits of another number are refused`() {
        val guess = Guess.of(FloatArray(10) { it * 100f })
        assertEquals(1f, guess.probabilities.sum(), 1e-5f)
        assertEquals(9, guess.digit)
        assertThrows(IllegalArgumentException::class.java) { Guess.of(FloatArray(9)) }
        assertNotNull(shown)
    }

    @Test
    fun `every state is shown, none twice in a row`() {
        demo.start()
        shown.clear()
        draw()
        demo.wipe()
        demo.wipe()
        assertEquals(3, shown.size)
        assertEquals(demo.state, shown.last())
    }
}
