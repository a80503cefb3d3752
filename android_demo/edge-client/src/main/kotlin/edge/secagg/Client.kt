package edge.secagg

import edge.Bytes
import edge.LocalProtocolError
import edge.RemoteProtocolError
import edge.secagg.Suite.u32
import org.bouncycastle.crypto.InvalidCipherTextException
import org.bouncycastle.crypto.modes.ChaCha20Poly1305
import org.bouncycastle.crypto.params.AEADParameters
import org.bouncycastle.crypto.params.KeyParameter

/** A device's two ephemeral pairs of one round: `c`, the [channel], and `s`, the [mask]s. */
public class RoundKeys internal constructor(public val channel: KeyPair, public val mask: KeyPair)

/** Another device of the roster and its two public keys, authenticated by the caller. */
public data class Peer(val index: Int, val channelPublic: Bytes, val maskPublic: Bytes)

/** What a device sends at share_keys: H(b_u), and the 80-byte box for each neighbour, in ascending index. */
public class SealedShares(public val commitment: ByteArray, public val boxes: List<Pair<Int, ByteArray>>)

/** A neighbour's shares that this device holds: of its self seed, and of its mask key. */
public class HeldShares(internal val ofSeed: ByteArray, internal val ofKey: ByteArray)

/**
 * The device's stages of a secure aggregation round (SA-1), as functions of bytes.
 *
 * What a device advertises, how it shares its two secrets with its neighbours, how it masks its vector, and how it opens
 * the shares that it holds for others. Knows no messages, signatures or state: the session decides when each may
 * happen, and that nothing is answered twice. Indices travel as u32, little-endian.
 */
public object Client {
    public const val SECRET_BYTES: Int = 32
    public const val BOX_BYTES: Int = 2 * SECRET_BYTES + 16

    private const val TAG_BITS = 128
    private val NONCE = ByteArray(12) // every box has a key of its own, used once
    private val ADVERTISEMENT = Suite.label("advertise-keys")
    private val STATEMENT = Suite.label("masked-input")
    private val ENDORSEMENT = Suite.label("endorsement")
    private val COMMITMENT = Suite.label("self-seed")
    private val SHARE = Suite.label("share")
    private val MASK = Suite.label("mask")

    /** The two pairs that 32 random bytes give. */
    public fun roundKeys(entropy: ByteArray): RoundKeys = RoundKeys(
        channel = KeyPair.fromPrivate(Suite.derive(entropy, "channel key")),
        mask = KeyPair.fromPrivate(Suite.derive(entropy, "mask key")),
    )

    /** The bytes that a device signs with its identity key at advertise_keys. */
    public fun advertisement(ctx: ByteArray, channelPublic: Bytes, maskPublic: Bytes): ByteArray =
        ADVERTISEMENT + ctx + channelPublic.array + maskPublic.array

    /** The bytes that a device signs with its identity key to say for which U2 it masked. */
    public fun statement(ctx: ByteArray, root: ByteArray, index: Int, sharersDigest: ByteArray): ByteArray =
        STATEMENT + ctx + root + u32(index) + sharersDigest

    /** The bytes that a member of the committee signs with its identity key at stage 5a. */
    public fun endorsement(ctx: ByteArray, survivorsDigest: ByteArray): ByteArray = ENDORSEMENT + ctx + survivorsDigest

    /**
     * One device's leaf of the roster's Merkle tree.
     *
     * index u32 || c_pk (32) || s_pk (32) || certificate length u32 || certificate || signature.
     */
    public fun rosterLeaf(
        index: Int,
        certificateDer: Bytes,
        channelPublic: Bytes,
        maskPublic: Bytes,
        signature: Bytes,
    ): ByteArray {
        if (channelPublic.size != KeyPair.KEY_BYTES || maskPublic.size != KeyPair.KEY_BYTES) {
            throw RemoteProtocolError("an X25519 public key in the roster is not 32 bytes")
        }
        return u32(index) + channelPublic.array + maskPublic.array + u32(certificateDer.size) + certificateDer.array +
            signature.array
    }

    /** H(b_u), by which the coordinator checks a rebuilt self seed. */
    public fun commitment(ctx: ByteArray, index: Int, selfSeed: ByteArray): ByteArray =
        Suite.digest(COMMITMENT, ctx, u32(index), selfSeed)

    /**
     * Shares the self seed b_u and the mask key s_sk among the neighbours, one box each.
     *
     * Neighbour v's shares are those at x = v+1. Both secrets share the points; the polynomials come from [entropy], 32
     * bytes of this use alone. A device holds no share of its own, so that [threshold] counts neighbours' shares.
     */
    public fun sealShares(
        keys: RoundKeys,
        selfSeed: ByteArray,
        ctx: ByteArray,
        root: ByteArray,
        index: Int,
        peers: List<Peer>,
        threshold: Int,
        entropy: ByteArray,
    ): SealedShares {
        if (selfSeed.size != SECRET_BYTES) throw LocalProtocolError("a self seed is 32 bytes, not ${selfSeed.size}")
        val neighbours = peers.sortedBy { it.index }
        val (ofSeed, ofKey) = Shamir.split(
            listOf(selfSeed, keys.mask.private.array),
            threshold,
            neighbours.map { it.index + 1 },
            Stream(Suite.derive(entropy, "share polynomials")),
        )
        val boxes = neighbours.map { peer ->
            val cipher = box(keys, ctx, root, sender = index, receiver = peer.index, peer.channelPublic, seals = true)
            peer.index to run(cipher, ofSeed.getValue(peer.index + 1) + ofKey.getValue(peer.index + 1))
        }
        return SealedShares(commitment(ctx, index, selfSeed), boxes)
    }

    /**
     * The shares that a neighbour sealed for this device.
     *
     * Raises RemoteProtocolError where the box was not sealed by this peer for this device in this round and roster.
     */
    public fun openBox(
        keys: RoundKeys,
        ctx: ByteArray,
        root: ByteArray,
        myIndex: Int,
        peer: Peer,
        box: ByteArray,
    ): HeldShares {
        if (box.size != BOX_BYTES) throw RemoteProtocolError("a box of shares is ${box.size} bytes, not $BOX_BYTES")
        val cipher = box(keys, ctx, root, sender = peer.index, receiver = myIndex, peer.channelPublic, seals = false)
        val shares = try {
            run(cipher, box)
        } catch (error: InvalidCipherTextException) {
            throw RemoteProtocolError("the box of shares from device ${peer.index} does not open", cause = error)
        }
        return HeldShares(shares.copyOfRange(0, SECRET_BYTES), shares.copyOfRange(SECRET_BYTES, 2 * SECRET_BYTES))
    }

    /**
     * The vector masked for upload, reduced modulo 2^bits, as a new vector.
     *
     * Adds the mask of the self seed and, for each neighbour in U2, the pairwise mask, with sign +1 where this device's
     * index is the lower one. [sharersDigest] is H(U2), so that masks of devices shown different U2 do not cancel;
     * [peers] are the neighbours that are in U2.
     */
    public fun mask(
        vector: IntArray,
        bits: Int,
        selfSeed: ByteArray,
        keys: RoundKeys,
        ctx: ByteArray,
        root: ByteArray,
        sharersDigest: ByteArray,
        index: Int,
        peers: List<Peer>,
    ): IntArray {
        val masked = vector.copyOf()
        val masks = peers.map { peer ->
            pairwiseMask(keys.mask.agree(peer.maskPublic), ctx, root, sharersDigest, index, peer.index)
        }
        Modular.addMasks(masked, Modular.workBits(bits), listOf(Mask(selfSeed, 1)) + masks)
        return Modular.reduce(masked, bits)
    }

    /** The mask between two devices, with the sign with which device [index] adds it. */
    public fun pairwiseMask(
        secret: ByteArray,
        ctx: ByteArray,
        root: ByteArray,
        sharersDigest: ByteArray,
        index: Int,
        peerIndex: Int,
    ): Mask {
        if (index == peerIndex) throw LocalProtocolError("device $index has no mask with itself")
        val low = minOf(index, peerIndex)
        val high = maxOf(index, peerIndex)
        val seed = Suite.hkdf(secret, ctx, MASK + root + sharersDigest + u32(low) + u32(high))
        return Mask(seed, if (index == low) 1 else -1)
    }

    /** The root enters key and data too: a second roster for one round would otherwise use a key and nonce twice. */
    private fun box(
        keys: RoundKeys,
        ctx: ByteArray,
        root: ByteArray,
        sender: Int,
        receiver: Int,
        public: Bytes,
        seals: Boolean,
    ): ChaCha20Poly1305 {
        val place = root + u32(sender) + u32(receiver)
        val key = Suite.hkdf(keys.channel.agree(public), ctx, SHARE + place)
        val cipher = ChaCha20Poly1305()
        cipher.init(seals, AEADParameters(KeyParameter(key), TAG_BITS, NONCE, ctx + place))
        return cipher
    }

    private fun run(cipher: ChaCha20Poly1305, input: ByteArray): ByteArray {
        val output = ByteArray(cipher.getOutputSize(input.size))
        val written = cipher.processBytes(input, 0, input.size, output, 0)
        cipher.doFinal(output, written)
        return output
    }
}
