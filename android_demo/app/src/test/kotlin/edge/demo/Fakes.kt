package edge.demo

import edge.StoreError

/** Always likes one digit best. */
class FakeModel(override var problem: ModelProblem? = null, var favourite: Int = 3) : DigitModel {
    override val version: Int? get() = if (problem == null) 0 else null
    override var notice: Notice? = null
    override fun predict(pixels: FloatArray): FloatArray? =
        if (problem != null) null else FloatArray(10) { if (it == favourite) 5f else 0f }
}

/** Keeps in memory, or says that the phone is full. */
class FakeShelf : ExampleShelf {
    var full = false
    val kept = mutableListOf<Example>()
    override fun all(): List<Example> = kept.toList()
    override fun add(example: Example) {
        if (full) throw StoreError("cannot write example-1: no space left", "free some storage")
        kept += example
    }
    override fun clear() = kept.clear()
}

/** Keeps in memory. */
class FakeChoices : Choices {
    override var consenting = false
    override var invitation: String? = null
}

/** Writes down what it was asked. */
class FakeLearning(private val log: MutableList<String>) : Learning {
    override fun join(invitation: Invitation) { log += "join ${invitation.coordinator}" }
    override fun trainNow() { log += "train now" }
    override fun withdraw() { log += "withdraw" }

    companion object {
        /** What an operator gives a person. */
        val INVITATION: String = "coordinator mqtts://fl.example.com:8883\nregistrar https://fl.example.com:8443\n" +
            "token abc\n-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"
    }
}
