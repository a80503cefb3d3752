package edge.training

import org.junit.jupiter.api.Assertions.assertEquals
import org.junit.jupiter.api.Test

class TrainingPlanTest {
    @Test
    fun `steps are as many as batches`() {
        for (examples in listOf(1, 3, 4, 5, 8, 9)) for (smallest in listOf(1, 2)) for (most in listOf(2L, 100L)) {
            val plan = TrainingPlan(epochs = 3, batchSize = 4, learningRate = 0.1f, maxSteps = most, proximal = 0f)
            val batches = plan.batches(examples, "seed".toByteArray(), smallest).count()
            assertEquals(batches, plan.steps(examples, smallest), "$examples examples, from $smallest on, $most at most")
        }
    }
}
