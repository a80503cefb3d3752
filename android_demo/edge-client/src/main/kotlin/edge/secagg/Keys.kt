package edge.secagg

import edge.Bytes
import edge.LocalProtocolError
import edge.RemoteProtocolError
import org.bouncycastle.math.ec.rfc7748.X25519

/**
 * An ephemeral X25519 pair (RFC 7748) as raw bytes, the only kind of asymmetric key of a round.
 *
 * It keeps the secrets that it has agreed on, since a round uses each channel secret twice; they go when the pair goes.
 * Not for several threads. Knows nothing of identities: certificates and signatures live elsewhere.
 */
public class KeyPair private constructor(internal val private: Bytes, public val public: Bytes) {
    private val agreed = HashMap<Bytes, ByteArray>()

    /**
     * The 32-byte secret shared with [public].
     *
     * Raises RemoteProtocolError where it is malformed or of low order (the secret would be zero).
     */
    public fun agree(public: Bytes): ByteArray = agreed.getOrPut(public) { agree(private.array, public.array) }

    override fun toString(): String = "KeyPair(${public.hex()}, private hidden)"

    public companion object {
        public const val KEY_BYTES: Int = 32

        /** The pair of 32 random bytes (clamped on use, RFC 7748 section 5). */
        public fun fromPrivate(private: ByteArray): KeyPair {
            requirePrivate(private)
            val public = ByteArray(KEY_BYTES)
            X25519.scalarMultBase(private, 0, public, 0)
            return KeyPair(Bytes(private), Bytes(public))
        }

        /** X25519(private, public), 32 bytes; raises as [KeyPair.agree]. */
        public fun agree(private: ByteArray, public: ByteArray): ByteArray {
            requirePrivate(private)
            if (public.size != KEY_BYTES) {
                throw RemoteProtocolError("an X25519 public key is 32 bytes, not ${public.size}")
            }
            val secret = ByteArray(KEY_BYTES)
            if (!X25519.calculateAgreement(private, 0, public, 0, secret, 0)) {
                throw RemoteProtocolError(
                    "an X25519 public key is a point of low order",
                    "drop the peer that sent it",
                )
            }
            return secret
        }

        private fun requirePrivate(private: ByteArray) {
            if (private.size != KEY_BYTES) {
                throw LocalProtocolError("an X25519 private key is 32 bytes, not ${private.size}")
            }
        }
    }
}
