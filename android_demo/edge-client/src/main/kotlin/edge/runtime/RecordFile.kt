package edge.runtime

import edge.StoreError
import java.io.Closeable
import java.io.File
import java.io.IOException
import java.io.RandomAccessFile
import java.nio.ByteBuffer
import java.util.zip.CRC32

/**
 * A file of records that only grows, until it is cleared: each is there whole or not at all, and in order.
 *
 * A record is its length (u32, at least 1), its CRC-32 (u32) and its bytes. What a crash or power cut left half written at
 * the end is cut off when the file is read; see [damaged]. Raises StoreError where the file cannot be used.
 */
internal class RecordFile(private val file: File) : Closeable {
    private var handle: RandomAccessFile
    private var end = 0L

    /** Whether a record was found damaged that others followed: not a crash, but the disk. */
    var damaged: Boolean = false
        private set

    init {
        handle = guarded("open") {
            file.absoluteFile.parentFile?.mkdirs()
            opened(file)
        }
    }

    /** All records, oldest first. Called once, before anything is added. */
    fun readAll(): List<ByteArray> = guarded("read") {
        val content = ByteArray(handle.length().toInt())
        handle.seek(0)
        handle.readFully(content)
        val records = ArrayList<ByteArray>()
        val buffer = ByteBuffer.wrap(content)
        while (buffer.remaining() >= HEAD_BYTES) {
            val size = buffer.getInt()
            val crc = buffer.getInt()
            if (size !in 1..buffer.remaining()) break
            val record = ByteArray(size).also { buffer.get(it) }
            if (crcOf(record) != crc) {
                damaged = buffer.hasRemaining()
                break
            }
            records.add(record)
            end = buffer.position().toLong()
        }
        if (!damaged) handle.setLength(end)
        records
    }

    /** Adds a record; [durable] where it must outlive a power cut from here on. */
    fun append(record: ByteArray, durable: Boolean) {
        guarded("write") {
            handle.seek(end)
            handle.write(framed(record))
            end += HEAD_BYTES + record.size
            if (durable) handle.fd.sync()
        }
    }

    /** Holds these records and no others, at once or not at all; the bytes of those before are overwritten on the disk. */
    fun replace(records: List<ByteArray>) {
        guarded("replace") {
            val part = File(file.path + ".part")
            part.delete()
            val next = opened(part)
            for (record in records) next.write(framed(record))
            next.fd.sync()
            if (!part.renameTo(file)) throw IOException("it cannot be renamed")
            val before = handle
            val size = end
            handle = next
            end = next.filePointer
            overwrite(before, size)
            before.close()
        }
    }

    /** Forgets all records: their bytes are overwritten on the disk first. */
    fun erase() {
        guarded("erase") {
            overwrite(handle, end)
            handle.setLength(0)
            handle.fd.sync()
            end = 0
        }
    }

    override fun close() {
        guarded("close") { handle.close() }
    }

    private inline fun <T> guarded(what: String, action: () -> T): T = try {
        action()
    } catch (error: IOException) {
        throw StoreError(
            "cannot $what $file: ${error.message}",
            "check the disk's free space and the folder's permissions; the device resumes where it stopped",
            error,
        )
    }

    companion object {
        private const val HEAD_BYTES = 8

        private fun opened(file: File): RandomAccessFile {
            if (file.createNewFile()) makePrivate(file)
            return RandomAccessFile(file, "rw")
        }

        private fun framed(record: ByteArray): ByteArray =
            ByteBuffer.allocate(HEAD_BYTES + record.size).putInt(record.size).putInt(crcOf(record)).put(record).array()

        private fun overwrite(handle: RandomAccessFile, size: Long) {
            val zeros = ByteArray(1 shl 16)
            var at = 0L
            handle.seek(0)
            while (at < size) {
                val count = minOf(zeros.size.toLong(), size - at).toInt()
                handle.write(zeros, 0, count)
                at += count
            }
            handle.fd.sync()
        }

        private fun crcOf(data: ByteArray): Int = CRC32().run {
            update(data)
            value.toInt()
        }

        /** Lets only its owner read or write a file. */
        fun makePrivate(file: File) {
            file.setReadable(false, false)
            file.setReadable(true, true)
            file.setWritable(false, false)
            file.setWritable(true, true)
        }
    }
}
