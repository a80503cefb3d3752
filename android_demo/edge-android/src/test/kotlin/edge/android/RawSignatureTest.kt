package edge.android

import java.math.BigInteger
import java.security.KeyPairGenerator
import java.security.Signature
import java.security.SignatureException
import java.security.spec.ECGenParameterSpec
import org.junit.jupiter.api.Assertions.assertArrayEquals
import org.junit.jupiter.api.Assertions.assertEquals
import org.junit.jupiter.api.Assertions.assertThrows
import org.junit.jupiter.api.Test

class RawSignatureTest {
    private fun der(r: BigInteger, s: BigInteger): ByteArray {
        val numbers = listOf(r, s).map { it.toByteArray() }.map { byteArrayOf(2, it.size.toByte()) + it }
        return byteArrayOf(0x30, numbers.sumOf { it.size }.toByte()) + numbers[0] + numbers[1]
    }

    @Test
    fun `numbers are padded to 32 bytes each`() {
        val raw = RawSignature.fromDer(der(BigInteger.ONE, BigInteger.ONE.shiftLeft(255)))
        assertArrayEquals(ByteArray(31) + 1 + 0x80.toByte() + ByteArray(31), raw)
    }

    @Test
    fun `the platform's signatures come out as their numbers`() {
        val pair = KeyPairGenerator.getInstance("EC").apply { initialize(ECGenParameterSpec("secp256r1")) }.generateKeyPair()
        repeat(200) { round ->
            val signature = Signature.getInstance("SHA256withECDSA").apply { initSign(pair.private) }
            signature.update(byteArrayOf(round.toByte()))
            val signed = signature.sign()
            val raw = RawSignature.fromDer(signed)
            assertEquals(64, raw.size)
            assertArrayEquals(signed, der(BigInteger(1, raw.copyOf(32)), BigInteger(1, raw.copyOfRange(32, 64))))
        }
    }

    @Test
    fun `anything else is refused`() {
        val good = der(BigInteger.TEN, BigInteger.TEN)
        val bad = listOf(
            ByteArray(0),
            good.copyOf(good.size - 1),
            good + 0,
            good.copyOf().also { it[0] = 0x31 },
            good.copyOf().also { it[2] = 3 },
            good.copyOf().also { it[3] = 9 },
            good.copyOf().also { it[4] = -1 },
            der(BigInteger.ONE.shiftLeft(257), BigInteger.TEN),
        )
        for (bytes in bad) assertThrows(SignatureException::class.java) { RawSignature.fromDer(bytes) }
    }
}
