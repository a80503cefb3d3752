package edge.secagg

import edge.LocalProtocolError
import edge.PrivacyError
import edge.RemoteProtocolError

/** No choice of shares gives the secret. */
internal class NotRebuilt : Exception()

/** The coordinator's side of secure aggregation, for the golden files only: plain, and without a care for speed. */
internal object Coordinator {
    fun multiply(a: Int, b: Int): Int = Field.exp[Field.log[a] + Field.log[b]].code

    fun inverse(a: Int): Int = Field.exp[Field.ORDER - Field.log[a]].code

    fun combine(shares: Map<Int, ByteArray>, threshold: Int): ByteArray {
        if (threshold < 1) throw LocalProtocolError("a threshold of $threshold is not possible")
        if (shares.size < threshold) throw RemoteProtocolError("too few shares")
        val xs = shares.keys.sorted().take(threshold)
        val size = shares.getValue(xs[0]).size
        if (size % 2 != 0 || xs.any { shares.getValue(it).size != size }) throw RemoteProtocolError("uneven shares")
        if (xs.first() < 1 || xs.last() > Field.ORDER) throw RemoteProtocolError("a point out of range")
        val weights = xs.map { x ->
            xs.filter { it != x }.fold(1) { product, other -> multiply(product, multiply(other, inverse(other xor x))) }
        }
        val secret = ByteArray(size)
        for (i in 0 until size step 2) {
            var symbol = 0
            for ((place, x) in xs.withIndex()) {
                val share = shares.getValue(x)
                val value = (share[i].toInt() and 0xff) or (share[i + 1].toInt() and 0xff shl 8)
                symbol = symbol xor multiply(weights[place], value)
            }
            secret[i] = symbol.toByte()
            secret[i + 1] = (symbol shr 8).toByte()
        }
        return secret
    }

    /** The secret that some [threshold] of the shares give and [isRight] accepts. */
    fun rebuild(shares: Map<Int, ByteArray>, threshold: Int, isRight: (ByteArray) -> Boolean): ByteArray {
        if (threshold < 1) throw NotRebuilt()
        val good = shares.filter { it.value.size == Client.SECRET_BYTES && it.key in 1..Field.ORDER }
        return choices(good.keys.sorted(), threshold)
            .map { chosen -> combine(chosen.associateWith { good.getValue(it) }, threshold) }
            .firstOrNull(isRight) ?: throw NotRebuilt()
    }

    private fun choices(from: List<Int>, count: Int): Sequence<List<Int>> = when {
        count == 0 -> sequenceOf(emptyList())
        from.size < count -> emptySequence()
        else -> choices(from.drop(1), count - 1).map { listOf(from[0]) + it } + choices(from.drop(1), count)
    }

    fun unpack(data: ByteArray, length: Int, bits: Int): IntArray {
        Modular.workBits(bits)
        if (data.size != Modular.packedBytes(length, bits)) throw RemoteProtocolError("a packed vector of another length")
        fun bit(i: Int) = data[i / 8].toInt() shr (i % 8) and 1
        if ((length * bits until 8 * data.size).any { bit(it) != 0 }) throw RemoteProtocolError("padding is not zero")
        return IntArray(length) { i -> (0 until bits).fold(0) { value, j -> value or (bit(i * bits + j) shl j) } }
    }

    fun centre(vector: IntArray, bits: Int): LongArray =
        Modular.reduce(vector, bits).map { ((it.toLong() shl 64 - bits) shr 64 - bits) }.toLongArray()

    private fun levels(leaves: List<ByteArray>): List<List<ByteArray>> {
        if (leaves.isEmpty()) throw LocalProtocolError("a Merkle tree needs at least one leaf")
        val levels = mutableListOf(leaves.map { Suite.digest(Merkle.LEAF, it) })
        while (levels.last().size > 1) {
            levels += levels.last().chunked(2).map { if (it.size == 2) Suite.digest(Merkle.NODE, it[0], it[1]) else it[0] }
        }
        return levels
    }

    fun root(leaves: List<ByteArray>): ByteArray = levels(leaves).last().single()

    fun proofs(leaves: List<ByteArray>): List<List<ByteArray>> {
        val levels = levels(leaves).dropLast(1)
        return leaves.indices.map { index ->
            levels.mapIndexedNotNull { height, level -> level.getOrNull((index shr height) xor 1) }
        }
    }

    /** Degree, threshold and t1. */
    fun graphParameters(size: Int, corrupt: Double, dropout: Double, twoSets: Boolean): List<Int> {
        if (size !in 2..Graph.LARGEST_ROSTER) throw PrivacyError("a round of $size devices cannot be masked")
        Chances.checkShares(corrupt, dropout)
        val lost = Chances.count(corrupt, size) + Chances.count(dropout, size)
        val live = size - Chances.count(dropout, size)
        if (size >= 50) {
            for (degree in 2 until size - 1 step 2) {
                if (!Graph.isConnected(size, degree, lost)) continue
                val bound = Graph.colludingNeighbours(size, degree, corrupt)
                val threshold = maxOf(2, Graph.minimumThreshold(degree, bound, twoSets))
                val below = Chances.hypergeometric(size, live, degree).runningReduce(Double::plus)
                if (threshold <= below.count { it <= Math.pow(2.0, -20.0) / size }) return listOf(degree, threshold, bound)
            }
        }
        val complete = listOf(size - 1, minOf(2 * size / 3 + 1, size - 1), Chances.count(corrupt, size))
        if (complete[1] < Graph.minimumThreshold(complete[0], complete[2], twoSets)) throw PrivacyError("no graph")
        return complete
    }

    /** Degree, threshold, committee and quorum. */
    fun quorumParameters(size: Int, corrupt: Double, dropout: Double): List<Int> {
        Chances.checkShares(corrupt, dropout)
        if (size !in 2..Graph.LARGEST_ROSTER) throw PrivacyError("a round of $size devices cannot be masked")
        val live = size - Chances.count(dropout, size)
        fun below(drawn: Int, least: Int) = Chances.hypergeometric(size, live, drawn).take(least).sum()
        for (committee in 1..size) {
            val quorum = Quorum.leastQuorum(size, committee, corrupt)
            if (below(committee, quorum) <= Math.pow(2.0, -20.0)) {
                return quorumGraph(size, corrupt, ::below) + listOf(committee, quorum)
            }
        }
        throw PrivacyError("no quorum is left")
    }

    private fun quorumGraph(size: Int, corrupt: Double, below: (Int, Int) -> Double): List<Int> {
        if (size >= 50) {
            for (degree in 2 until size - 1 step 2) {
                val threshold = maxOf(2, Graph.colludingNeighbours(size, degree, corrupt) + 1)
                val bound = Quorum.cutBound(size, degree, corrupt)
                if (Graph.isSound(size, degree, threshold, corrupt, false) &&
                    below(degree, threshold) <= Math.pow(2.0, -20.0) / size &&
                    below(degree, bound + 1) <= Math.pow(2.0, -20.0) / Quorum.pairs(size, degree)
                ) {
                    return listOf(degree, threshold)
                }
            }
        }
        return listOf(size - 1, if (size > 2) maxOf(2, Chances.count(corrupt, size) + 1) else 1)
    }

    /** The sum of the survivors' vectors from the sum of their masked ones. */
    fun unmask(
        total: IntArray,
        bits: Int,
        seeds: List<ByteArray>,
        dropped: List<Pair<Peer, ByteArray>>,
        survivingNeighbours: (Int) -> List<Peer>,
        ctx: ByteArray,
        root: ByteArray,
        sharersDigest: ByteArray,
    ): IntArray {
        val sum = total.copyOf()
        val masks = seeds.map { Mask(it, -1) } + dropped.flatMap { (owner, key) ->
            survivingNeighbours(owner.index).map { peer ->
                val secret = KeyPair.agree(key, peer.maskPublic.array)
                // Added by the dropped device itself, they would have cancelled what the survivors added.
                Client.pairwiseMask(secret, ctx, root, sharersDigest, owner.index, peer.index)
            }
        }
        Modular.addMasks(sum, Modular.workBits(bits), masks)
        return Modular.reduce(sum, bits)
    }

    fun peer(keys: RoundKeys, index: Int): Peer = Peer(index, keys.channel.public, keys.mask.public)
}
