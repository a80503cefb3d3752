package edge.demo

import kotlin.math.exp

/** The model's answer for a drawing: a probability for each digit. */
data class Guess(val probabilities: List<Float>) {
    /** The likeliest digit. */
    val digit: Int get() = probabilities.indices.maxByOrNull { probabilities[it] } ?: 0

    /** The probability of [digit], 0 to 1. */
    val confidence: Float get() = probabilities[digit]

    companion object {
        /** How many digits there are to tell apart. */
        const val DIGITS: Int = 10

        /** From the model's output, [DIGITS] logits. */
        fun of(logits: FloatArray): Guess {
            require(logits.size == DIGITS) { "the model gave ${logits.size} values, not one for each of $DIGITS digits" }
            val largest = logits.max()
            val powers = logits.map { exp(it - largest) }
            val sum = powers.sum()
            return Guess(powers.map { it / sum })
        }
    }
}
