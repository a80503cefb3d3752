package edge.secagg

import edge.Bytes
import edge.Inputs
import edge.JsonNumber
import edge.Signing
import edge.Vectors
import edge.asInt
import edge.asList
import edge.asLong
import edge.asText
import edge.hex
import edge.octets
import edge.protocol.Checks
import edge.protocol.Survivors
import edge.unhex
import java.math.BigInteger
import java.security.KeyFactory
import java.security.interfaces.ECPrivateKey
import java.security.spec.ECPrivateKeySpec
import org.bouncycastle.crypto.engines.ChaCha7539Engine
import org.bouncycastle.crypto.modes.ChaCha20Poly1305
import org.bouncycastle.crypto.params.AEADParameters
import org.bouncycastle.crypto.params.KeyParameter
import org.bouncycastle.crypto.params.ParametersWithIV
import org.junit.jupiter.api.Assertions.assertArrayEquals
import org.junit.jupiter.api.DynamicTest
import org.junit.jupiter.api.TestFactory

/** The golden files of secure aggregation, which Python and Kotlin must get bit for bit, failures included. */
class SecaggVectorsTest {
    @TestFactory
    fun primitives(): List<DynamicTest> = Vectors.tests("secagg_primitives.json", operations)

    @TestFactory
    fun suite(): List<DynamicTest> = Vectors.tests("secagg_suite.json", operations)

    @TestFactory
    fun modular(): List<DynamicTest> = Vectors.tests("secagg_modular.json", operations)

    @TestFactory
    fun shamir(): List<DynamicTest> = Vectors.tests("secagg_shamir.json", operations)

    @TestFactory
    fun graph(): List<DynamicTest> = Vectors.tests("secagg_graph.json", operations)

    @TestFactory
    fun quorum(): List<DynamicTest> = Vectors.tests("secagg_quorum.json", operations)

    @TestFactory
    fun merkle(): List<DynamicTest> = Vectors.tests("secagg_merkle.json", operations)

    @TestFactory
    fun stages(): List<DynamicTest> = Vectors.tests("secagg_stages.json", operations)

    private val operations: Map<String, (Inputs) -> Any> = mapOf(
        "public_key" to { i -> KeyPair.fromPrivate(i.bytes("private")).public.array },
        "agree" to { i -> KeyPair.agree(i.bytes("private"), i.bytes("public")) },
        "hkdf" to { i -> Suite.hkdf(i.bytes("ikm"), i.bytes("salt"), i.bytes("info"), i.int("length")) },
        "aes_ctr" to { i -> Suite.keystream(i.bytes("key"), i.bytes("counter")).update(i.bytes("plaintext")) },
        "chacha20" to ::chacha20,
        "chacha20_poly1305" to ::chacha20Poly1305,
        "ecdsa_p256" to { i -> Signing.signRaw(privateKey(i.text("private")), i.bytes("message")) },
        "digest" to { i -> Suite.digest(*bytesOf(i, "parts").toTypedArray()) },
        "context" to { i -> Suite.context(i.bytes("rid"), i.bytes("plan_digest"), i.bytes("model_digest")) },
        "derive" to { i -> Suite.derive(i.bytes("entropy"), i.text("name")) },
        "stream" to ::stream,
        "pack" to { i -> Modular.pack(words(i, "vector"), i.int("bits")) },
        "unpack" to { i -> unsigned(Coordinator.unpack(i.bytes("data"), i.int("length"), i.int("bits"))) },
        "centre" to { i -> Coordinator.centre(words(i, "vector"), i.int("bits")) },
        "add_masks" to ::addMasks,
        "mask_digest" to ::maskDigest,
        "split" to { i ->
            Shamir.split(bytesOf(i, "secrets"), i.int("threshold"), i.ints("xs"), Stream(i.bytes("key")))
        },
        "combine" to { i -> Coordinator.combine(shares(i), i.int("threshold")) },
        "rebuild_self_seed" to { i ->
            Coordinator.rebuild(shares(i), i.int("threshold")) { seed ->
                Client.commitment(i.bytes("ctx"), i.int("index"), seed).contentEquals(i.bytes("commitment"))
            }
        },
        "rebuild_mask_key" to { i ->
            Coordinator.rebuild(shares(i), i.int("threshold")) { key ->
                KeyPair.fromPrivate(key).public.array.contentEquals(i.bytes("public"))
            }
        },
        "graph_parameters" to { i ->
            Coordinator.graphParameters(i.int("size"), i.double("corrupt"), i.double("dropout"), i.boolean("two_sets"))
        },
        "quorum_parameters" to { i ->
            Coordinator.quorumParameters(i.int("size"), i.double("corrupt"), i.double("dropout"))
        },
        "graph_is_sound" to { i ->
            Graph.isSound(
                i.int("size"), i.int("degree"), i.int("threshold"), i.double("corrupt"), i.boolean("two_sets"),
                i.double("dropout"),
            )
        },
        "permutation" to { i -> Graph.permutation(i.int("size"), i.bytes("seed")) },
        "neighbours" to { i -> Graph.neighbours(i.int("size"), i.int("degree"), i.int("index"), i.bytes("seed")) },
        "quorum_is_sound" to { i ->
            Quorum.isSound(i.int("size"), i.int("committee"), i.int("quorum"), i.double("corrupt"))
        },
        "committee" to { i ->
            Checks.committeeOf(i.bytes("ctx"), i.bytes("root"), i.int("size"), i.int("committee")).sorted()
        },
        "holds_together" to { i ->
            Quorum.holdsTogether(
                i.int("size"), i.int("degree"), i.ints("survivors").toSet(), i.double("corrupt"),
                Checks.graphSeed(i.bytes("ctx"), i.bytes("root")),
            )
        },
        "statement" to { i ->
            Client.statement(
                i.bytes("ctx"), i.bytes("root"), i.int("index"), Checks.sharersDigest(Bytes(i.bytes("sharers"))).array,
            )
        },
        "endorsement" to { i ->
            val survivors = Survivors(
                Bytes(i.bytes("rid")), Bytes(i.bytes("root")), Bytes(i.bytes("sharers")), Bytes(i.bytes("survivors")),
            )
            Client.endorsement(i.bytes("ctx"), Checks.survivorsDigest(survivors).array)
        },
        "merkle_root" to { i -> Coordinator.root(bytesOf(i, "leaves")) },
        "merkle_proofs" to { i -> Coordinator.proofs(bytesOf(i, "leaves")) },
        "merkle_verify" to { i ->
            Merkle.verify(i.bytes("root"), i.bytes("leaf"), i.int("index"), i.int("size"), bytesOf(i, "proof"))
        },
        "round_keys" to ::roundKeys,
        "advertisement" to { i -> Client.advertisement(i.bytes("ctx"), value(i, "channel"), value(i, "mask")) },
        "roster_leaf" to { i ->
            Client.rosterLeaf(
                i.int("index"), value(i, "certificate"), value(i, "channel"), value(i, "mask"), value(i, "signature"),
            )
        },
        "commitment" to { i -> Client.commitment(i.bytes("ctx"), i.int("index"), i.bytes("self_seed")) },
        "seal_shares" to ::seal,
        "open_box" to ::open,
        "mask" to ::mask,
        "transcript" to ::transcript,
    )

    private fun chacha20(i: Inputs): Any {
        val engine = ChaCha7539Engine()
        engine.init(true, ParametersWithIV(KeyParameter(i.bytes("key")), i.bytes("nonce")))
        engine.seekTo(64L * i.int("counter"))
        val plaintext = i.bytes("plaintext")
        return ByteArray(plaintext.size).also { engine.processBytes(plaintext, 0, plaintext.size, it, 0) }
    }

    private fun chacha20Poly1305(i: Inputs): Any {
        val cipher = ChaCha20Poly1305()
        cipher.init(true, AEADParameters(KeyParameter(i.bytes("key")), 128, i.bytes("nonce"), i.bytes("data")))
        val plaintext = i.bytes("plaintext")
        val output = ByteArray(plaintext.size + 16)
        cipher.doFinal(output, cipher.processBytes(plaintext, 0, plaintext.size, output, 0))
        return output
    }

    private fun stream(i: Inputs): Any {
        val stream = Stream(i.bytes("key"))
        return i.list("reads").map { read ->
            val (method, argument) = read.asList("read")
            when (method.asText("method")) {
                "bytes" -> stream.bytes(argument.asInt("count"))
                "uint16" -> stream.uint16(argument.asInt("count"))
                "uint32" -> unsigned(stream.uint32(argument.asInt("count")))
                "uint64" -> stream.uint64(argument.asInt("count")).map { BigInteger(java.lang.Long.toUnsignedString(it)) }
                else -> stream.below(BigInteger((argument as JsonNumber).text))
            }
        }
    }

    private fun addMasks(i: Inputs): Any {
        val vector = words(i, "vector")
        val masks = i.list("masks").map { mask ->
            val (seed, sign) = mask.asList("mask")
            Mask(seed.asText("seed").unhex(), sign.asInt("sign"))
        }
        Modular.addMasks(vector, i.int("word_bits"), masks)
        return unsigned(Modular.reduce(vector, i.int("word_bits")))
    }

    private fun maskDigest(i: Inputs): Any {
        val vector = IntArray(i.int("length"))
        Modular.addMasks(vector, i.int("word_bits"), listOf(Mask(i.bytes("seed"), 1)))
        return Suite.digest(Modular.pack(vector, i.int("word_bits")))
    }

    private fun roundKeys(i: Inputs): Any {
        val pairs = Client.roundKeys(i.bytes("entropy"))
        return mapOf(
            "channel" to listOf(pairs.channel.private.array, pairs.channel.public.array),
            "mask" to listOf(pairs.mask.private.array, pairs.mask.public.array),
        )
    }

    private fun seal(i: Inputs): Any {
        val sealed = Client.sealShares(
            Client.roundKeys(i.bytes("keys")), i.bytes("self_seed"), i.bytes("ctx"), i.bytes("root"), i.int("index"),
            peers(i), i.int("threshold"), i.bytes("entropy"),
        )
        return mapOf("commitment" to sealed.commitment, "boxes" to sealed.boxes.map { listOf(it.first, it.second) })
    }

    private fun open(i: Inputs): Any {
        val peer = Coordinator.peer(Client.roundKeys(i.bytes("peer_keys")), i.int("peer"))
        val shares = Client.openBox(
            Client.roundKeys(i.bytes("keys")), i.bytes("ctx"), i.bytes("root"), i.int("index"), peer, i.bytes("box"),
        )
        return listOf(shares.ofSeed, shares.ofKey)
    }

    private fun mask(i: Inputs): Any = unsigned(
        Client.mask(
            words(i, "vector"), i.int("bits"), i.bytes("self_seed"), Client.roundKeys(i.bytes("keys")), i.bytes("ctx"),
            i.bytes("root"), i.bytes("sharers_digest"), i.int("index"), peers(i),
        ),
    )

    /** A whole round: device u's keys, self seed and share entropy are named octets; some devices drop out. */
    private fun transcript(i: Inputs): Any {
        val bits = i.int("bits")
        val length = i.int("length")
        val ctx = i.bytes("ctx")
        val root = i.bytes("root")
        val threshold = i.int("threshold")
        val everyone = 0 until i.int("size")
        val keys = everyone.map { Client.roundKeys(octets("keys $it", 32)) }
        val seeds = everyone.map { octets("self seed $it", 32) }
        val vectors = everyone.map { Stream(octets("vector $it", 32)).uint16(length) }
        val peers = everyone.map { Coordinator.peer(keys[it], it) }
        val near = everyone.map { Graph.neighbours(everyone.count(), i.int("degree"), it, Suite.digest(ctx, root)) }
        val sealed = everyone.map { u ->
            Client.sealShares(
                keys[u], seeds[u], ctx, root, u, near[u].map { peers[it] }, threshold, octets("share entropy $u", 32),
            )
        }
        val boxes = everyone.associateWith { sealed[it].boxes.toMap() }
        val sharers = everyone - i.ints("dropped_before_masking").toSet()
        val survivors = sharers - i.ints("dropped_after").toSet()
        val masked = survivors.associateWith { u ->
            Client.mask(
                vectors[u], bits, seeds[u], keys[u], ctx, root, i.bytes("sharers_digest"), u,
                near[u].filter { it in sharers }.map { peers[it] },
            )
        }
        val total = IntArray(length) { at -> masked.values.sumOf { it[at] } }
        val shares = sharers.associateWith { u ->
            near[u].filter { it in survivors }.associate { v ->
                val held = Client.openBox(keys[v], ctx, root, v, peers[u], boxes.getValue(u).getValue(v))
                v + 1 to (if (u in survivors) held.ofSeed else held.ofKey)
            }.toMutableMap()
        }
        if ("bad_share" in i) {
            val (owner, holder) = i.ints("bad_share")
            shares.getValue(owner)[holder + 1] = ByteArray(32)
        }
        for (owner in if ("withheld" in i) i.ints("withheld") else emptyList()) {
            shares.getValue(owner).keys.drop(threshold - 1).forEach { shares.getValue(owner).remove(it) }
        }
        val secrets = sharers.associateWith { u ->
            Coordinator.rebuild(shares.getValue(u), threshold) { secret ->
                if (u in survivors) {
                    Client.commitment(ctx, u, secret).contentEquals(sealed[u].commitment)
                } else {
                    KeyPair.fromPrivate(secret).public == peers[u].maskPublic
                }
            }
        }
        val found = Coordinator.unmask(
            total, bits, survivors.map { secrets.getValue(it) },
            (sharers - survivors.toSet()).map { peers[it] to secrets.getValue(it) },
            { u -> near[u].filter { it in survivors }.map { peers[it] } }, ctx, root, i.bytes("sharers_digest"),
        )
        val expected = IntArray(length) { at -> survivors.sumOf { vectors[it][at] } }
        assertArrayEquals(Modular.reduce(expected, bits), found)
        return mapOf(
            "neighbours" to near,
            "boxes_digest" to Suite.digest(*boxes.values.flatMap { it.toSortedMap().values }.toTypedArray()),
            "masked" to masked.mapValues { Modular.pack(it.value, bits).hex() },
            "sum" to unsigned(found),
        )
    }

    private fun privateKey(hex: String): ECPrivateKey =
        KeyFactory.getInstance("EC").generatePrivate(ECPrivateKeySpec(BigInteger(hex, 16), Signing.p256)) as ECPrivateKey

    private fun bytesOf(i: Inputs, name: String): List<ByteArray> = i.list(name).map { it.asText(name).unhex() }

    private fun value(i: Inputs, name: String): Bytes = Bytes(i.bytes(name))

    private fun words(i: Inputs, name: String): IntArray = i.list(name).map { it.asLong(name).toInt() }.toIntArray()

    private fun unsigned(words: IntArray): List<Long> = words.map { it.toLong() and 0xffffffffL }

    private fun shares(i: Inputs): Map<Int, ByteArray> =
        i["shares"].let { it as edge.JsonObject }.fields.entries.associate { it.key.toInt() to it.value.asText("share").unhex() }

    private fun peers(i: Inputs): List<Peer> = i.list("peers").map { peer ->
        val (index, entropy) = peer.asList("peer")
        Coordinator.peer(Client.roundKeys(entropy.asText("entropy").unhex()), index.asInt("index"))
    }
}
