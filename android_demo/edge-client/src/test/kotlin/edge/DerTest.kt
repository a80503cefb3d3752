package edge

import java.math.BigInteger
import javax.security.auth.x500.X500Principal
import org.bouncycastle.asn1.ASN1Integer
import org.bouncycastle.asn1.ASN1Sequence
import org.bouncycastle.asn1.DERBitString
import org.junit.jupiter.api.Assertions.assertArrayEquals
import org.junit.jupiter.api.Assertions.assertEquals
import org.junit.jupiter.api.Assertions.assertThrows
import org.junit.jupiter.api.Test

/** What is written is what Bouncy Castle writes, and what the platform writes can be read. */
class DerTest {
    @Test
    fun `elements are as Bouncy Castle has them`() {
        for (value in listOf("0", "127", "128", "65535", "1".repeat(700))) {
            val number = BigInteger(value)
            assertArrayEquals(ASN1Integer(number).encoded, Der.integer(number))
        }
        for (size in listOf(0, 126, 127, 128, 255, 256, 65_535, 65_536)) {
            val content = ByteArray(size) { it.toByte() }
            assertArrayEquals(DERBitString(content).encoded, Der.bits(content))
            val parts = Der.sequence(Der.bits(content), Der.integer(BigInteger.ONE))
            assertEquals(2, ASN1Sequence.getInstance(parts).size())
        }
    }

    @Test
    fun `names are read whatever they hold beside`() {
        fun common(name: String) = Der.valuesOf(X500Principal(name).encoded, Der.COMMON_NAME)
        assertEquals(listOf("device-1"), common("CN=device-1"))
        assertEquals(listOf("a,CN=b\u00e9"), common("OU=device, CN=\"a,CN=b\u00e9\", O=x"))
        // The text of a name begins with what its DER ends with.
        assertEquals(listOf("b", "a"), common("CN=a+OU=c, CN=b"))
        assertEquals(listOf("x".repeat(300)), common("CN=" + "x".repeat(300)))
        assertEquals(emptyList<String>(), common(""))
        val units = Der.valuesOf(X500Principal("OU=device+CN=a").encoded, Der.ORGANISATIONAL_UNIT)
        assertEquals(listOf("device"), units)
    }

    @Test
    fun `what is no name is refused and never a crash`() {
        val name = X500Principal("CN=device-1,OU=device").encoded
        for (size in 1 until name.size) {
            assertThrows(IllegalArgumentException::class.java) { Der.valuesOf(name.copyOf(size), Der.COMMON_NAME) }
        }
        val odd = listOf("0102", "30028000", "3084ffffffff", "300430023000", "300a3108300606035504030a", "3000" + "00")
        for (text in odd) {
            assertThrows(IllegalArgumentException::class.java, { Der.valuesOf(text.fromHex()!!, Der.COMMON_NAME) }, text)
        }
        // An integer where a text belongs.
        val number = Der.sequence(Der.set(Der.sequence(Der.COMMON_NAME, Der.integer(BigInteger.ONE))))
        assertThrows(IllegalArgumentException::class.java) { Der.valuesOf(number, Der.COMMON_NAME) }
    }
}
