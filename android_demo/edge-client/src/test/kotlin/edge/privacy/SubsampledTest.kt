package edge.privacy

import edge.PrivacyError
import edge.protocol.DeclineReason
import edge.protocol.DevicePolicy
import edge.protocol.Policy
import edge.secagg.Stream
import org.junit.jupiter.api.Assertions.assertEquals
import org.junit.jupiter.api.Assertions.assertNull
import org.junit.jupiter.api.Assertions.assertThrows
import org.junit.jupiter.api.Assertions.assertTrue
import org.junit.jupiter.api.Test

/** What noisy sums over samples cost, against the values of edge_sdk.privacy.subsampled, and what is drawn. */
class SubsampledTest {
    @Test
    fun `epsilons are those of Python`() {
        val cases = listOf(
            listOf(Sampling(1.1, 0.01, 1000)) to 1.7252908180449562,
            listOf(Sampling(0.5, 0.3, 8)) to 24.22230088304253,
            listOf(Sampling(2.0, 1.0, 10), Sampling(0.8, 0.05, 200)) to 12.503964701839712,
            listOf(Sampling(20.0, 1e-4, 5)) to 0.000536344832209519,
            emptyList<Sampling>() to 0.0,
        )
        for ((samplings, expected) in cases) {
            assertEquals(expected, Subsampled.sampledEpsilon(samplings, 1e-5), 1e-9 * expected)
        }
        assertThrows(PrivacyError::class.java) { Subsampled.sampledEpsilon(listOf(Sampling(0.0, 0.5, 1)), 1e-5) }
        assertThrows(PrivacyError::class.java) { Subsampled.sampledEpsilon(listOf(Sampling(1.0, 1.5, 1)), 1e-5) }
        assertThrows(PrivacyError::class.java) { Subsampled.sampledEpsilon(emptyList(), 0.0) }
    }

    @Test
    fun `samples have their rate, and all where it is one`() {
        val stream = Stream(ByteArray(32))
        assertEquals((0 until 50).toList(), Subsampled.poissonSample(50, 1.0, stream))
        val drawn = Subsampled.poissonSample(100_000, 0.7, stream)
        assertEquals(70_000.0, drawn.size.toDouble(), 6 * 145.0)
        assertEquals(drawn.sorted(), drawn)
    }

    @Test
    fun `a policy for examples refuses what costs them too much`() {
        val sampling = Sampling(1.1, 0.01, 1000)
        val policy = DevicePolicy(exampleEpsilonAtMost = 2.0)
        assertNull(Policy.exampleObjection(null, DevicePolicy(), emptyList()))
        assertNull(Policy.exampleObjection(sampling, policy, emptyList()))
        assertEquals(DeclineReason.NOISE_TOO_SMALL, Policy.exampleObjection(null, policy, emptyList())?.reason)
        assertEquals(DeclineReason.EPSILON_TOO_LARGE, Policy.exampleObjection(sampling, policy, listOf(sampling))?.reason)
    }

    @Test
    fun `noise has the deviation that was asked for, on a grid`() {
        val noised = Gaussian.noised(DoubleArray(20_000), 2.0, 3.0, Stream(ByteArray(32)))
        val deviation = Math.sqrt(noised.sumOf { it * it } / noised.size)
        assertEquals(6.0, deviation, 0.15)
        assertTrue(noised.toSet().size > 19_000)
        assertThrows(PrivacyError::class.java) { Gaussian.noised(DoubleArray(9), 1.0, 1e6, Stream(ByteArray(32))) }
        assertThrows(PrivacyError::class.java) { Gaussian.noised(doubleArrayOf(Double.NaN), 1.0, 1.0, Stream(ByteArray(32))) }
    }
}
