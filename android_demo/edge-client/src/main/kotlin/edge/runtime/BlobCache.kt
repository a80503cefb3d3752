package edge.runtime

import edge.Bytes
import edge.StoreError
import edge.protocol.BlobRef
import edge.protocol.Chunks
import edge.protocol.MemoryParts
import edge.protocol.PartStore
import edge.secagg.Suite
import java.io.File
import java.io.IOException
import java.io.RandomAccessFile
import java.nio.ByteBuffer

/** Blobs that a device has fetched, as files in [folder] named by their SHA-256, and those on their way in. */
public class BlobCache(private val folder: File) {
    private val incoming = File(folder, "incoming")

    init {
        if (!incoming.isDirectory && !incoming.mkdirs()) {
            throw StoreError("cannot make $incoming", "check the disk's free space and the folder's permissions")
        }
    }

    /** Whether the blob is here whole. */
    public fun has(blob: BlobRef): Boolean = file(blob.sha256).let { it.isFile && it.length() == blob.sizeBytes }

    /** A blob, verified again: a disk can change its mind. Raises StoreError: missing, or damaged and so removed. */
    public fun get(sha256: Bytes): ByteArray {
        val file = file(sha256)
        val data = guarded(file) { file.readBytes() }
        if (!Suite.digest(data).contentEquals(sha256.array)) {
            file.delete()
            throw StoreError("$file was damaged and has been removed", "it will be fetched again")
        }
        return data
    }

    /** Keeps a blob, whole or not at all. */
    public fun put(data: ByteArray) {
        val file = file(Bytes(Suite.digest(data)))
        val part = File(folder, file.name + ".part")
        guarded(file) {
            // Not synced: a blob that a power cut damages is noticed when it is read, and fetched again.
            part.writeBytes(data)
            if (!part.renameTo(file)) throw IOException("it cannot be renamed")
        }
    }

    /** Forgets every other blob: what a device needs is its newest bundle and checkpoint. */
    public fun retain(digests: Set<Bytes>) {
        val names = digests.map { it.hex() }
        folder.listFiles()?.forEach { if (it.isFile && it.name !in names) it.delete() }
    }

    /** Where the chunks of a blob go on their way in: to disk where there is more than one to lose. */
    public fun parts(blob: BlobRef, chunkBytes: Int): PartStore {
        if (blob.sizeBytes <= chunkBytes) return MemoryParts(blob.sizeBytes.toInt())
        val begun = incoming.listFiles().orEmpty().sortedByDescending { it.lastModified() }
        begun.drop(KEPT).forEach { it.delete() }
        return guarded(incoming) { FileParts(incoming, blob, chunkBytes) }
    }

    private fun file(sha256: Bytes) = File(folder, sha256.hex())

    private inline fun <T> guarded(file: File, action: () -> T): T = try {
        action()
    } catch (error: IOException) {
        throw StoreError("cannot use $file: ${error.message}", "check the disk's free space and permissions", error)
    }

    private companion object {
        const val KEPT = 64
    }
}

/**
 * A blob on its way in, on disk: a transfer that was interrupted resumes after a restart.
 *
 * `NAME.part` holds the blob's bytes in place, `NAME.have` for each chunk the CRC-32 of its data, with a flag. Nothing is
 * forced to disk on the way: when a transfer is taken up again, every chunk is checked against its CRC, so that a crash
 * costs chunks and never correctness.
 */
internal class FileParts(folder: File, blob: BlobRef, private val chunkBytes: Int) : PartStore {
    private val sizeBytes = blob.sizeBytes.toInt()
    private val count = Chunks.count(blob.sizeBytes, chunkBytes)
    private val partFile = File(folder, blob.sha256.hex() + ".part")
    private val haveFile = File(folder, blob.sha256.hex() + ".$chunkBytes.have")
    private val part = RandomAccessFile(partFile, "rw")
    private val have = RandomAccessFile(haveFile, "rw")
    private val held = BooleanArray(count)

    init {
        if (have.length() == ENTRY_BYTES * count.toLong() && part.length() == sizeBytes.toLong()) resume() else reset()
    }

    override fun has(index: Int): Boolean = held[index]

    override fun write(index: Int, offset: Int, data: ByteArray) {
        guarded {
            part.seek(offset.toLong())
            part.write(data)
            have.seek(ENTRY_BYTES * index.toLong())
            have.write(ByteBuffer.allocate(ENTRY_BYTES).putInt(1).putInt(Chunks.crc(data)).array())
        }
        held[index] = true
    }

    override fun readAll(): ByteArray = guarded {
        part.seek(0)
        ByteArray(sizeBytes).also { part.readFully(it) }
    }

    override fun drop() {
        guarded { reset() }
        held.fill(false)
    }

    override fun close() {
        guarded {
            part.close()
            have.close()
        }
    }

    override fun remove() {
        close()
        partFile.delete()
        haveFile.delete()
    }

    private fun resume() {
        val entries = ByteBuffer.wrap(ByteArray(ENTRY_BYTES * count).also { have.readFully(it) })
        for (index in 0 until count) {
            val flag = entries.getInt()
            val crc = entries.getInt()
            if (flag != 1) continue
            val from = index * chunkBytes
            val data = ByteArray(minOf(chunkBytes, sizeBytes - from))
            part.seek(from.toLong())
            part.readFully(data)
            held[index] = Chunks.crc(data) == crc
        }
    }

    private fun reset() {
        have.setLength(0)
        have.setLength(ENTRY_BYTES * count.toLong())
        part.setLength(sizeBytes.toLong())
    }

    private inline fun <T> guarded(action: () -> T): T = try {
        action()
    } catch (error: IOException) {
        throw StoreError("cannot use $partFile: ${error.message}", "check the disk's free space and permissions", error)
    }

    private companion object {
        const val ENTRY_BYTES = 8
    }
}
