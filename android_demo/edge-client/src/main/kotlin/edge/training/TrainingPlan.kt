package edge.training

import edge.protocol.Plan
import java.nio.ByteBuffer
import java.nio.ByteOrder
import org.bouncycastle.crypto.digests.SHAKEDigest

/** A round's instructions to local training; [proximal] is FedProx's mu. Knows no runtime. */
internal class TrainingPlan(
    val epochs: Long,
    val batchSize: Int,
    val learningRate: Float,
    val maxSteps: Long,
    val proximal: Float,
) {
    /**
     * The rows of each step: a fresh shuffle every epoch (PROTOCOL.md 13).
     *
     * The last batch of an epoch may be short; below [smallest] it is left out.
     */
    fun batches(examples: Int, seed: ByteArray, smallest: Int): Sequence<List<Int>> = sequence {
        var steps = 0L
        for (epoch in 0 until epochs) {
            val keys = ByteBuffer.wrap(shake("edge-sdk/shuffle/1", epoch.toInt(), seed, 8 * examples))
                .order(ByteOrder.LITTLE_ENDIAN).asLongBuffer()
            val order = (0 until examples).sortedBy { keys.get(it) xor Long.MIN_VALUE }
            for (rows in order.chunked(batchSize)) {
                if (rows.size < smallest) break
                if (steps >= maxSteps) return@sequence
                steps++
                yield(rows)
            }
        }
    }

    /** How many batches there are: the steps of a training in which no example goes meanwhile. */
    fun steps(examples: Int, smallest: Int): Int {
        val short = examples % batchSize
        val each = examples / batchSize + if (short > 0 && short >= smallest) 1 else 0
        return minOf(maxSteps, epochs * each, Int.MAX_VALUE.toLong()).toInt()
    }

    companion object {
        /** Of a plan that the device accepted. */
        fun of(plan: Plan): TrainingPlan = TrainingPlan(
            epochs = plan.epochs,
            batchSize = minOf(plan.batchSize, Int.MAX_VALUE.toLong()).toInt(),
            learningRate = plan.learningRate.toFloat(),
            maxSteps = plan.maxSteps,
            proximal = plan.proximal.toFloat(),
        )

        /** The seed of one step's randomness, steps counting from zero: below 2^31. */
        fun stepSeed(seed: ByteArray, step: Int): Long {
            val digest = ByteBuffer.wrap(shake("edge-sdk/step/1", step, seed, 4)).order(ByteOrder.LITTLE_ENDIAN)
            return digest.getInt().toLong() and 0x7fffffffL
        }

        private fun shake(label: String, number: Int, seed: ByteArray, count: Int): ByteArray {
            val digest = SHAKEDigest(256)
            for (part in listOf(label.toByteArray(), edge.secagg.Suite.u32(number), seed)) {
                digest.update(part, 0, part.size)
            }
            return ByteArray(count).also { digest.doFinal(it, 0, count) }
        }
    }
}
