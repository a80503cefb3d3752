package edge.secagg

/**
 * Arithmetic in GF(2^16) with the polynomial x^16 + x^12 + x^3 + x + 1 (0x1100B).
 *
 * Elements are the low 16 bits of an Int; addition is xor; the generator of the multiplicative group is x (2). Knows
 * nothing of secrets or shares. Table look-ups are not constant in time: use it only where the operands are secret from
 * the network, not from other code on the machine.
 */
internal object Field {
    /** Size of the multiplicative group. */
    const val ORDER: Int = 65_535

    private const val POLYNOMIAL = 0x1100B
    private const val LOG_OF_ZERO = 2 * ORDER

    /** `exp[log[a] + log[b]]` is the product a*b: log[0] is 2*ORDER, and exp holds zeros from there on. */
    val exp: CharArray
    val log: IntArray

    init {
        exp = CharArray(2 * LOG_OF_ZERO + 1)
        log = IntArray(ORDER + 1)
        var power = 1
        for (i in 0 until ORDER) {
            exp[i] = power.toChar()
            exp[i + ORDER] = power.toChar()
            log[power] = i
            power = power shl 1
            if (power > ORDER) power = power xor POLYNOMIAL
        }
        log[0] = LOG_OF_ZERO
    }
}
