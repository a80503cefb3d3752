package edge.privacy

import edge.TrainingError
import kotlin.math.sqrt

/** Clips an update to a ball. Knows nothing of what is done with it next. */
public object Clip {
    /**
     * update * min(1, clipNorm / ||update||_2), and whether it was scaled down.
     *
     * The result is a new vector, or the update itself where nothing was to be done. Raises TrainingError where the
     * update holds an infinity or a NaN.
     */
    public fun clip(update: FloatArray, clipNorm: Double): Pair<FloatArray, Boolean> {
        var square = 0.0
        for (value in update) square += value.toDouble() * value
        val norm = sqrt(square)
        if (norm.isNaN() || norm.isInfinite()) {
            throw TrainingError("the update holds values that are not finite", "lower the learning rate")
        }
        if (norm <= clipNorm) return Pair(update, false)
        val factor = (clipNorm / norm).toFloat()
        return Pair(FloatArray(update.size) { update[it] * factor }, true)
    }
}
