package edge.privacy

import edge.PrivacyError
import edge.secagg.Modular
import edge.secagg.Stream
import edge.secagg.Suite
import kotlin.math.hypot

/**
 * How a round's updates become integers; the same for all its devices.
 *
 * [dimension] is d, coordinates of the update; [bits] b of the modulus 2^b; [clipNorm] C, the largest 2-norm of an
 * update; [clipBit] a, the size of one more coordinate that says whether the update was within C, 0 for none; [scale] s,
 * integer steps per unit; [normBound] D2, the largest 2-norm of a rounded vector; [mechanism] and [deviceVariance] of the
 * noise that each device adds, 0 for none. Raises PrivacyError where a value is out of its range.
 */
public data class EncodingParameters(
    val dimension: Int,
    val bits: Int,
    val clipNorm: Double,
    val clipBit: Double,
    val scale: Double,
    val normBound: Double,
    val mechanism: Mechanism,
    val deviceVariance: Long,
) {
    init {
        problem()?.let { throw PrivacyError("encoding parameters are unusable: $it", "calibrate the task anew") }
    }

    /** Coordinates of the encoded vector. */
    val length: Int get() = dimension + if (clipBit > 0) 1 else 0

    private fun problem(): String? {
        if (dimension < 1) return "the dimension is $dimension"
        if (bits !in Modular.MINIMUM_BITS..Modular.MAXIMUM_BITS) return "a modulus of $bits bits is not supported"
        for (value in listOf(clipNorm, scale, normBound)) {
            if (!(value > 0 && value < Double.POSITIVE_INFINITY)) {
                return "clip norm, scale and norm bound must be finite and positive, not $value"
            }
        }
        if (!(clipBit >= 0 && clipBit < Double.POSITIVE_INFINITY)) return "a clip bit of $clipBit is no size"
        val rounded = hypot(clipNorm, clipBit) * scale
        if (!(rounded <= normBound && normBound <= LARGEST_NORM_BOUND)) {
            return "a norm bound of $normBound is not between what is rounded and 2^30"
        }
        if (deviceVariance !in 0..Noise.MAXIMUM_VARIANCE) return "a noise variance of $deviceVariance is not in 0..2^28"
        return null
    }

    private companion object {
        const val LARGEST_NORM_BOUND = 1_073_741_824.0 // so that rounded values fit 32 bits, and their squares 64
    }
}

/**
 * From a device's update to the vector it masks (PROTOCOL.md 4).
 *
 * Clip, rotate, scale, round, add this device's share of the noise, reduce modulo 2^b. Knows no keys and no cohort.
 */
public object Encode {
    /**
     * The update as integers modulo 2^bits, noise included, `length` long.
     *
     * [entropy] is 32 bytes of this use alone, expanded into the rounding and the noise. Raises TrainingError where the
     * update is not finite, PrivacyError where it has another length than the dimension.
     */
    public fun encode(
        update: FloatArray,
        parameters: EncodingParameters,
        ctx: ByteArray,
        entropy: ByteArray,
    ): IntArray {
        if (update.size != parameters.dimension) {
            throw PrivacyError("an update of ${update.size} values is not of ${parameters.dimension}")
        }
        var (clipped, wasClipped) = Clip.clip(update, parameters.clipNorm)
        if (parameters.clipBit > 0) {
            clipped += (if (wasClipped) -parameters.clipBit else parameters.clipBit).toFloat()
        }
        val integers = Quantize.stochasticRound(
            Rotate.rotate(clipped, ctx),
            parameters.scale,
            parameters.normBound,
            Suite.derive(entropy, "rounding"),
        )
        val noise = Noise.sample(
            parameters.mechanism,
            parameters.deviceVariance,
            parameters.length,
            Stream(Suite.derive(entropy, "noise")),
        )
        for (i in integers.indices) integers[i] += noise[i]
        return Modular.reduce(integers, parameters.bits)
    }
}
