package edge.secagg

/**
 * Audit paths in Merkle trees over a list of byte strings, as in RFC 6962 section 2.1.
 *
 * A leaf is hashed with a 0x00 prefix and a node with 0x01, so that neither can pass for the other. Knows nothing of
 * what the leaves mean.
 */
public object Merkle {
    internal val LEAF = byteArrayOf(0)
    internal val NODE = byteArrayOf(1)

    /** Whether [leaf] is number [index] of the [size] leaves under [root]; [proof] has the siblings, bottom up. */
    public fun verify(root: ByteArray, leaf: ByteArray, index: Int, size: Int, proof: List<ByteArray>): Boolean {
        if (index !in 0 until size) return false
        var node = Suite.digest(LEAF, leaf)
        var used = 0
        var at = index
        var width = size
        while (width > 1) {
            if (at xor 1 < width) {
                if (used == proof.size || proof[used].size != Suite.DIGEST_BYTES) return false
                val sibling = proof[used++]
                node = if (at and 1 == 1) Suite.digest(NODE, sibling, node) else Suite.digest(NODE, node, sibling)
            }
            at = at shr 1
            width = (width + 1) shr 1
        }
        return node.contentEquals(root) && used == proof.size
    }
}
