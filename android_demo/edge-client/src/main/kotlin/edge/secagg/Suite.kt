package edge.secagg

import edge.LocalProtocolError
import java.math.BigInteger
import java.nio.ByteBuffer
import java.nio.ByteOrder
import java.security.MessageDigest
import javax.crypto.Cipher
import javax.crypto.Mac
import javax.crypto.spec.IvParameterSpec
import javax.crypto.spec.SecretKeySpec

/**
 * Suite 1: the hash, the key derivation, the round context and the byte stream that all entropy is expanded with.
 *
 * H is SHA-256, the KDF is HKDF-SHA256 (RFC 5869), streams are AES-256-CTR. Knows nothing of rounds or messages. All
 * integers are little-endian.
 */
public object Suite {
    /** Names X25519, HKDF-SHA256, ChaCha20-Poly1305, AES-128-CTR masks and Shamir over GF(2^16) together. */
    public const val SUITE: Int = 1

    public const val DIGEST_BYTES: Int = 32
    public const val ROUND_ID_BYTES: Int = 16

    /** The domain separation prefix of [name]: `edge-sdk/NAME/1` and a zero byte. */
    public fun label(name: String): ByteArray = "edge-sdk/$name/1\u0000".toByteArray()

    /**
     * SHA-256 of the concatenated parts, 32 bytes.
     *
     * Callers make the concatenation unambiguous: every part but the last has a fixed length or a length prefix.
     */
    public fun digest(vararg parts: ByteArray): ByteArray {
        val sha256 = MessageDigest.getInstance("SHA-256")
        for (part in parts) sha256.update(part)
        return sha256.digest()
    }

    /** [length] bytes of HKDF-SHA256 (RFC 5869); an empty salt means 32 zero bytes, as there. */
    public fun hkdf(ikm: ByteArray, salt: ByteArray, info: ByteArray, length: Int = DIGEST_BYTES): ByteArray {
        if (length !in 1..255 * DIGEST_BYTES) {
            throw LocalProtocolError("HKDF cannot derive $length bytes", "ask for 1 to 8160 bytes")
        }
        val mac = Mac.getInstance("HmacSHA256")
        mac.init(SecretKeySpec(if (salt.isEmpty()) ByteArray(DIGEST_BYTES) else salt, "HmacSHA256"))
        mac.init(SecretKeySpec(mac.doFinal(ikm), "HmacSHA256"))
        val output = ByteArray(length)
        var block = ByteArray(0)
        var at = 0
        var counter = 1
        while (at < length) {
            mac.update(block)
            mac.update(info)
            mac.update(counter.toByte())
            block = mac.doFinal()
            val count = minOf(block.size, length - at)
            block.copyInto(output, at, 0, count)
            at += count
            counter++
        }
        return output
    }

    /** ctx = H(suite u16 || rid || H(plan) || H(model)), which enters every KDF and AD of a round. */
    public fun context(rid: ByteArray, planDigest: ByteArray, modelDigest: ByteArray): ByteArray {
        if (rid.size != ROUND_ID_BYTES || planDigest.size != DIGEST_BYTES || modelDigest.size != DIGEST_BYTES) {
            throw LocalProtocolError(
                "round id, plan digest and model digest are ${rid.size}, ${planDigest.size} and ${modelDigest.size} bytes",
                "they must be 16, 32 and 32",
            )
        }
        return digest(byteArrayOf(SUITE.toByte(), 0), rid, planDigest, modelDigest)
    }

    /** 32 bytes for one named use of a 32-byte entropy, so that no two uses share a stream. */
    public fun derive(entropy: ByteArray, name: String): ByteArray =
        hkdf(entropy, ByteArray(0), label("derive") + name.toByteArray())

    /** [value] as 4 bytes, little-endian. */
    public fun u32(value: Int): ByteArray =
        byteArrayOf(value.toByte(), (value shr 8).toByte(), (value shr 16).toByte(), (value shr 24).toByte())

    /** An AES-CTR keystream; the counter block is one 128-bit big-endian integer that wraps around. */
    internal fun keystream(key: ByteArray, counter: ByteArray): Cipher {
        val cipher = Cipher.getInstance("AES/CTR/NoPadding")
        cipher.init(Cipher.ENCRYPT_MODE, SecretKeySpec(key, "AES"), IvParameterSpec(counter))
        return cipher
    }
}

/**
 * A deterministic byte stream: AES-256-CTR over zeros, the key given and the initial counter zero.
 *
 * Every expansion of entropy goes through one, so that both languages draw the same values from the same bytes. Reading
 * moves the stream on; each method says how many bytes it takes.
 */
public class Stream(key: ByteArray) {
    private val cipher: Cipher

    init {
        if (key.size != 32) {
            throw LocalProtocolError("a stream key is 32 bytes, not ${key.size}", "derive it with HKDF")
        }
        cipher = Suite.keystream(key, ByteArray(16))
    }

    /** The next [count] bytes. */
    public fun bytes(count: Int): ByteArray = cipher.update(ByteArray(count)) ?: ByteArray(0)

    /** The next [count] 16-bit integers, two bytes each, from 0 to 65,535. */
    public fun uint16(count: Int): IntArray {
        val words = little(2 * count).asShortBuffer()
        return IntArray(count) { words.get(it).toInt() and 0xffff }
    }

    /** The next [count] 32-bit integers, four bytes each; the upper half shows as negative. */
    public fun uint32(count: Int): IntArray = IntArray(count).also { little(4 * count).asIntBuffer().get(it) }

    /** The next [count] 64-bit integers, eight bytes each; the upper half shows as negative. */
    public fun uint64(count: Int): LongArray = LongArray(count).also { little(8 * count).asLongBuffer().get(it) }

    /**
     * An integer exactly uniform in [0, limit), 1 <= limit <= 2^64.
     *
     * Takes eight bytes a try and rejects those at or above the largest multiple of `limit` in 2^64.
     */
    public fun below(limit: BigInteger): BigInteger {
        if (limit.signum() < 1 || limit > WORD_VALUES) {
            throw LocalProtocolError("cannot draw below $limit", "the limit is from 1 to 2^64")
        }
        val acceptable = WORD_VALUES - WORD_VALUES.mod(limit)
        while (true) {
            val word = BigInteger(1, bytes(8).reversedArray())
            if (word < acceptable) return word.mod(limit)
        }
    }

    private fun little(count: Int): ByteBuffer = ByteBuffer.wrap(bytes(count)).order(ByteOrder.LITTLE_ENDIAN)

    override fun toString(): String = "Stream(key hidden)"

    private companion object {
        val WORD_VALUES: BigInteger = BigInteger.ONE.shiftLeft(64)
    }
}
