package edge.training

import edge.ArtifactError
import edge.Bytes
import edge.Signing
import edge.fromHex
import edge.protocol.BlobRef
import edge.secagg.Suite
import edge.toHex
import java.nio.ByteBuffer
import java.nio.ByteOrder
import java.security.interfaces.ECPublicKey

/**
 * A bundle whose head was authenticated: its manifest, and those of its parts that are here, by name.
 *
 * [sha256] is that of the head, which names all parts by theirs.
 */
internal class Artifact(
    val manifest: Manifest,
    val head: ByteArray,
    val sha256: Bytes,
    private val parts: Map<String, ByteArray> = emptyMap(),
) {
    /** A part's bytes; raises ArtifactError where the bundle has no such part, or it is not here. */
    fun part(name: String): ByteArray {
        val spec = manifest.part(name)
        return parts[name] ?: throw ArtifactError(
            "part $name (${spec.sizeBytes} bytes) of the bundle is not on this device",
            "fetch it by its SHA-256",
        )
    }

    /** The same bundle with these parts, each known by its hash; raises ArtifactError where one is no part of it. */
    fun withParts(contents: List<ByteArray>): Artifact {
        val held = HashMap(parts)
        for (content in contents) {
            val digest = Suite.digest(content).toHex()
            val names = manifest.parts.filter { it.sha256 == digest }.map { it.name }
            if (names.isEmpty()) throw tampered("a part of ${content.size} bytes")
            for (name in names) held[name] = content
        }
        return Artifact(manifest, head, sha256, held)
    }

    /** The references of the named parts, as blobs. */
    fun references(names: List<String>): List<BlobRef> = names.map { name ->
        val spec = manifest.part(name)
        BlobRef(Bytes(requireNotNull(spec.sha256.fromHex())), spec.sizeBytes)
    }.distinct()

    /** The parameters that the model was exported with. */
    fun checkpoint(): FloatArray = manifest.layout.decode(part(Manifest.CHECKPOINT_PART), "the bundle's checkpoint")

    /** What is never trained, by its names in graphs; raises ArtifactError where it is not finite. */
    fun frozen(): Map<String, Tensor> {
        if (manifest.frozen.isEmpty()) return emptyMap()
        val content = part(Manifest.FROZEN_PART)
        var at = 0
        return manifest.frozen.associate { spec ->
            val tensor = Tensor(spec.dtype, spec.fixed, content.copyOfRange(at, at + spec.fixedBytes))
            at += spec.fixedBytes
            if (!tensor.isFinite()) {
                throw ArtifactError("${spec.name} of the bundle holds NaN or infinity", "export the model again")
            }
            spec.name to tensor
        }
    }

    companion object {
        private const val HEADER_BYTES = 48
        private const val PREFIX_BYTES = HEADER_BYTES + Signing.SIGNATURE_BYTES
        private const val FORMAT_VERSION = 1
        private const val MANIFEST_LIMIT_BYTES = 1 shl 20
        private const val ALIGNMENT = 64
        private val MAGIC = "EDGEBNDL".toByteArray()

        /**
         * Verifies a bundle's head against the pinned signer's key, and reads it: an artifact without its parts yet.
         *
         * Raises ArtifactError: not a bundle's head, truncated, of a newer format, signed by another key, tampered with or
         * malformed.
         */
        fun parseHead(head: ByteArray, signer: ECPublicKey): Artifact {
            val artifact = parse(head, signer)
            if (artifact.head.size != head.size) throw tampered("its end")
            return artifact
        }

        /** Verifies a whole bundle, as a file has it, and reads it with all its parts; raises ArtifactError. */
        fun parseFile(content: ByteArray, signer: ECPublicKey): Artifact {
            val artifact = parse(content, signer)
            val start = align(artifact.head.size.toLong())
            var end = artifact.head.size.toLong()
            val parts = artifact.manifest.parts.map { part ->
                val first = start + part.offset
                if (part.offset != align(end) - start || part.sizeBytes < 0) throw tampered("the place of ${part.name}")
                if (content.size < first + part.sizeBytes) throw truncated("part ${part.name} is cut off")
                if ((end until first).any { content[it.toInt()] != 0.toByte() }) throw tampered("its padding")
                end = first + part.sizeBytes
                val bytes = content.copyOfRange(first.toInt(), end.toInt())
                if (Suite.digest(bytes).toHex() != part.sha256) throw tampered("part ${part.name}")
                bytes
            }
            if (content.size.toLong() != end) throw tampered("its end")
            return artifact.withParts(parts)
        }

        private fun parse(content: ByteArray, signer: ECPublicKey): Artifact {
            if (!startsWith(content, MAGIC)) {
                throw ArtifactError("this is not a bundle: it does not begin with EDGEBNDL", "pass what edge export made")
            }
            if (content.size < PREFIX_BYTES) throw truncated("its header needs $PREFIX_BYTES bytes")
            val header = ByteBuffer.wrap(content).order(ByteOrder.LITTLE_ENDIAN)
            val version = header.getShort(8).toInt() and 0xffff
            if (version > FORMAT_VERSION) {
                throw ArtifactError(
                    "the bundle has format version $version, this SDK reads up to $FORMAT_VERSION",
                    "update the SDK in this app, or export with an older one",
                )
            }
            if (!content.copyOfRange(16, HEADER_BYTES).contentEquals(Signing.keyId(signer))) {
                throw ArtifactError(
                    "the bundle was signed by an unknown key, not by the pinned signer",
                    "sign the bundle with the pinned signer's key, or pin the right public key",
                )
            }
            val manifestBytes = header.getInt(12)
            if (version != FORMAT_VERSION || header.getShort(10).toInt() != 0 || manifestBytes !in 0..MANIFEST_LIMIT_BYTES) {
                throw tampered("its header")
            }
            if (content.size < PREFIX_BYTES + manifestBytes) throw truncated("its manifest is cut off")
            val head = content.copyOfRange(0, PREFIX_BYTES + manifestBytes)
            val manifest = head.copyOfRange(PREFIX_BYTES, head.size)
            val signature = head.copyOfRange(HEADER_BYTES, PREFIX_BYTES)
            if (!Signing.verifyRaw(signer, signature, head.copyOfRange(0, HEADER_BYTES) + manifest)) {
                throw tampered("its header, signature or manifest")
            }
            return Artifact(Manifest.decode(manifest), head, Bytes(Suite.digest(head)))
        }

        private fun startsWith(content: ByteArray, magic: ByteArray): Boolean =
            content.size >= magic.size && magic.indices.all { content[it] == magic[it] }

        private fun align(offset: Long): Long = (offset + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT

        private fun truncated(why: String) =
            ArtifactError("the bundle is truncated: $why", "fetch or copy the bundle again")

        private fun tampered(what: String) = ArtifactError(
            "the bundle was damaged or tampered with: $what does not match",
            "do not use it; fetch it again from its publisher",
        )
    }
}
