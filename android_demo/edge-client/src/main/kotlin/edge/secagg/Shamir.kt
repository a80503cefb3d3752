package edge.secagg

import edge.LocalProtocolError

/**
 * Shamir's secret sharing over GF(2^16) of byte strings of even length.
 *
 * A secret of 2L bytes is L little-endian 16-bit symbols, each the value at 0 of its own random polynomial of degree
 * threshold-1. A share is the L values at x, of the same length as the secret. Knows no protocol.
 */
public object Shamir {
    /**
     * Shares [secrets] of equal length among the points [xs]; for each secret its shares by x.
     *
     * Takes 2 * (threshold-1) * total symbols bytes of [randomness]: the coefficients of x^1 of every symbol of every
     * secret in order, then those of x^2, and so on.
     *
     * Raises LocalProtocolError where the points are not distinct and in 1..65535, the threshold is not in
     * 1..xs.size, or the secrets are not of one even length.
     */
    public fun split(
        secrets: List<ByteArray>,
        threshold: Int,
        xs: List<Int>,
        randomness: Stream,
    ): List<Map<Int, ByteArray>> {
        if (threshold !in 1..xs.size) {
            throw LocalProtocolError("a threshold of $threshold cannot be met by ${xs.size} shares")
        }
        if (xs.toSet().size != xs.size || !xs.all { it in 1..Field.ORDER }) {
            throw LocalProtocolError("the points of shares must be distinct and in 1..65535")
        }
        val sizeBytes = secrets.first().size
        if (sizeBytes % 2 != 0 || sizeBytes == 0 || secrets.any { it.size != sizeBytes }) {
            throw LocalProtocolError("secrets shared together must have one even length")
        }
        val perSecret = sizeBytes / 2
        val symbols = perSecret * secrets.size
        val constants = IntArray(symbols) { symbol(secrets[it / perSecret], it % perSecret) }
        val higher = randomness.uint16((threshold - 1) * symbols)
        val logs = IntArray(threshold * symbols) { i ->
            Field.log[if (i < symbols) constants[i] else higher[i - symbols]]
        }
        val shares = secrets.map { LinkedHashMap<Int, ByteArray>() }
        for (x in xs) {
            val values = evaluate(logs, symbols, threshold, Field.log[x])
            for (secret in secrets.indices) {
                shares[secret][x] = ByteArray(sizeBytes) { at ->
                    (values[secret * perSecret + at / 2] shr (8 * (at % 2))).toByte()
                }
            }
        }
        return shares
    }

    /** The values at one point of the polynomials whose coefficients' logarithms are given, row by row of a power. */
    private fun evaluate(logs: IntArray, symbols: Int, threshold: Int, logOfX: Int): IntArray {
        val values = IntArray(symbols)
        var logOfPower = 0
        for (power in 0 until threshold) {
            val row = power * symbols
            for (i in 0 until symbols) values[i] = values[i] xor Field.exp[logs[row + i] + logOfPower].code
            logOfPower += logOfX
            if (logOfPower >= Field.ORDER) logOfPower -= Field.ORDER
        }
        return values
    }

    private fun symbol(secret: ByteArray, place: Int): Int =
        (secret[2 * place].toInt() and 0xff) or (secret[2 * place + 1].toInt() and 0xff shl 8)
}
