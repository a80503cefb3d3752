package edge.protocol

import edge.Bytes
import edge.LocalProtocolError
import edge.RemoteProtocolError
import edge.runtime.BlobCache
import edge.secagg.Suite
import java.io.File
import java.util.Random
import org.junit.jupiter.api.Assertions.assertArrayEquals
import org.junit.jupiter.api.Assertions.assertEquals
import org.junit.jupiter.api.Assertions.assertFalse
import org.junit.jupiter.api.Assertions.assertThrows
import org.junit.jupiter.api.Assertions.assertTrue
import org.junit.jupiter.api.Test
import org.junit.jupiter.api.io.TempDir

/** Blobs in chunks: any order, losses, restarts, and a sender that answers no more than it may. */
class ChunksTest {
    @TempDir
    lateinit var folder: File

    private val chunkBytes = 256
    private val data = ByteArray(10_000).also { Random(1).nextBytes(it) }
    private val blob = BlobRef(Bytes(Suite.digest(data)), data.size.toLong())

    private fun pull(ranges: List<ChunkRange>, size: Int = chunkBytes) =
        Pull(blob.sha256, size.toLong(), ranges.map { it.first.toLong() }, ranges.map { it.count.toLong() })

    private fun answer(ranges: List<ChunkRange>) = Chunks.frames(blob.sha256, data, pull(ranges))

    @Test
    fun `a blob comes whole through losses, repetitions and any order`() {
        val random = Random(2)
        val assembly = Assembly(blob, chunkBytes, MemoryParts(data.size), windowBytes = 2_000)
        var now = 0.0
        while (!assembly.complete) {
            val frames = answer(assembly.requests(now)).filter { random.nextInt(4) > 0 }
            for (frame in (frames + frames.take(2)).shuffled(random)) assembly.receive(frame, now)
            now += 6.0
            assertTrue(now < 10_000) { "it does not end" }
        }
        assertArrayEquals(data, assembly.finish())
    }

    @Test
    fun `a transfer goes on after a restart, without what the disk damaged`() {
        val cache = BlobCache(folder)
        val first = cache.parts(blob, chunkBytes)
        val begun = Assembly(blob, chunkBytes, first)
        val frames = answer(begun.requests(0.0))
        for (frame in frames.take(20)) begun.receive(frame, 0.0)
        first.close()
        val part = File(folder, "incoming").listFiles()!!.single { it.name.endsWith(".part") }
        part.writeBytes(part.readBytes().also { it[5 * chunkBytes] = (it[5 * chunkBytes] + 1).toByte() })
        val parts = BlobCache(folder).parts(blob, chunkBytes)
        assertEquals((0 until 20).toList() - 5, (0 until 40).filter { parts.has(it) })
        val assembly = Assembly(blob, chunkBytes, parts)
        assertEquals(listOf(ChunkRange(5, 1), ChunkRange(20, 20)), assembly.requests(0.0))
        for (frame in frames) assembly.receive(frame, 0.0)
        assertArrayEquals(data, assembly.finish())
        parts.remove()
        assertEquals(0, File(folder, "incoming").listFiles()!!.size)
    }

    @Test
    fun `chunks that are not the blob's are refused and change nothing`() {
        val assembly = Assembly(blob, chunkBytes, MemoryParts(data.size))
        val good = answer(listOf(ChunkRange(3, 1))).single()
        val other = BlobRef(Bytes(ByteArray(32)), blob.sizeBytes)
        val bad = listOf(
            good.copyOf(good.size - 1),
            good.copyOf(10),
            good.copyOf().also { it[good.size - 1] = (it[good.size - 1] + 1).toByte() },
            Chunks.encode(other.sha256, 3, data.copyOf(chunkBytes)),
            Chunks.encode(blob.sha256, 40, data.copyOf(chunkBytes)),
            Chunks.encode(blob.sha256, -1, data.copyOf(chunkBytes)),
            Chunks.encode(blob.sha256, 39, data.copyOf(chunkBytes)),
        )
        for (frame in bad) assertThrows(RemoteProtocolError::class.java) { assembly.receive(frame, 0.0) }
        assertTrue(assembly.receive(good, 0.0))
        assertFalse(assembly.receive(good, 0.0))
        assertThrows(LocalProtocolError::class.java) { assembly.finish() }
    }

    @Test
    fun `a blob of another hash is dropped and asked for again`() {
        val assembly = Assembly(blob, chunkBytes, MemoryParts(data.size))
        val frames = answer(assembly.requests(0.0))
        for (frame in frames.drop(1)) assembly.receive(frame, 0.0)
        assembly.receive(Chunks.encode(blob.sha256, 0, ByteArray(chunkBytes)), 0.0)
        assertThrows(RemoteProtocolError::class.java) { assembly.finish() }
        assertEquals(listOf(ChunkRange(0, 40)), assembly.requests(1.0))
    }

    @Test
    fun `a sender refuses pulls that are malformed or too large`() {
        val wrong = listOf(
            pull(listOf(ChunkRange(40, 1))),
            pull(listOf(ChunkRange(39, 2))),
            pull(listOf(ChunkRange(0, 0))),
            pull(List(257) { ChunkRange(0, 1) }),
            pull(List(200) { ChunkRange(0, 40) }),
            pull(listOf(ChunkRange(0, 1)), size = 255),
            pull(listOf(ChunkRange(0, 1)), size = 1 shl 19),
            pull(listOf(ChunkRange(0, 1))).copy(counts = emptyList()),
            pull(listOf(ChunkRange(0, 1))).copy(firsts = listOf(0xffffffffL)),
        )
        for (each in wrong) {
            assertThrows(RemoteProtocolError::class.java) { Chunks.frames(blob.sha256, data, each) }
        }
    }
}
