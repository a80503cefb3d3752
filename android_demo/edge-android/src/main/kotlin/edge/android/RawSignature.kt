package edge.android

import java.security.SignatureException

/** ECDSA P-256 signatures as the wire has them: r and s, 32 bytes each, big-endian. Java's providers give DER. */
public object RawSignature {
    private const val NUMBER_BYTES = 32
    private const val SEQUENCE = 0x30
    private const val INTEGER = 0x02

    /** The same signature as r||s, 64 bytes. @throws SignatureException it is not DER of two such numbers. */
    public fun fromDer(der: ByteArray): ByteArray {
        // At most 2 + 2 * (2 + 33) bytes, so every length fits one byte.
        if (der.size < 2 || der[0].toInt() != SEQUENCE || der[1].toInt() != der.size - 2) throw malformed()
        val raw = ByteArray(2 * NUMBER_BYTES)
        var at = 2
        for (number in 0..1) {
            if (at + 2 > der.size || der[at].toInt() != INTEGER) throw malformed()
            val length = der[at + 1].toInt()
            var from = at + 2
            val to = from + length
            if (length < 1 || to > der.size || der[from] < 0) throw malformed()
            while (from < to && der[from].toInt() == 0) from++
            if (to - from > NUMBER_BYTES) throw malformed()
            der.copyInto(raw, (number + 1) * NUMBER_BYTES - (to - from), from, to)
            at = to
        }
        if (at != der.size) throw malformed()
        return raw
    }

    private fun malformed() = SignatureException("this is not a DER signature of two 256-bit numbers")
}
