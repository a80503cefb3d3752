package edge.protocol

import edge.Bytes
import edge.LocalProtocolError
import edge.RemoteProtocolError
import edge.secagg.Suite
import java.nio.ByteBuffer
import java.nio.ByteOrder
import java.util.zip.CRC32

/** [count] chunks from [first] on. */
public data class ChunkRange(val first: Int, val count: Int)

/** Where a receiver keeps the chunks of one blob; what it holds may outlive the process. */
public interface PartStore {
    /** Whether chunk [index] is held. */
    public fun has(index: Int): Boolean

    /** Keeps the data of chunk [index], which begins at byte [offset] of the blob; raises StoreError. */
    public fun write(index: Int, offset: Int, data: ByteArray)

    /** The whole blob; raises StoreError. */
    public fun readAll(): ByteArray

    /** Forgets all chunks. */
    public fun drop()

    /** Lets go of the chunks; where they outlive the process they stay for the next time. */
    public fun close()

    /** Gives the transfer up, or is done with it: nothing of it stays. */
    public fun remove()
}

/** Keeps the chunks of a blob of [sizeBytes] bytes in memory. */
public class MemoryParts(private val sizeBytes: Int) : PartStore {
    private val held = HashSet<Int>()
    private var data: ByteArray? = null

    override fun has(index: Int): Boolean = index in held

    override fun write(index: Int, offset: Int, data: ByteArray) {
        val all = this.data ?: ByteArray(sizeBytes).also { this.data = it }
        data.copyInto(all, offset)
        held.add(index)
    }

    override fun readAll(): ByteArray = data ?: ByteArray(0)

    override fun drop() {
        held.clear()
        data = null
    }

    override fun close(): Unit = drop()

    override fun remove(): Unit = drop()
}

/**
 * Blobs in chunks (PROTOCOL.md 8): the frames and the stateless sender. Pure: no clock, socket or file.
 *
 * The receiver drives, as with HTTP Range. It sends a signed Pull that names a blob by its SHA-256, and ranges of chunks;
 * the sender answers each pull with exactly those chunks and remembers nothing. Chunks themselves are not signed: the
 * blob's hash stood in a signed frame, and nothing of a blob is used before the whole of it matched.
 */
public object Chunks {
    /** How many chunks a blob has; raises RemoteProtocolError for sizes out of bounds: they come from the other side. */
    public fun count(sizeBytes: Long, chunkBytes: Int): Int {
        if (chunkBytes !in Limits.CHUNK_MIN_BYTES..Limits.CHUNK_MAX_BYTES) {
            throw RemoteProtocolError("chunks of $chunkBytes bytes are out of bounds")
        }
        if (sizeBytes !in 0..Limits.BLOB_MAX_BYTES) throw RemoteProtocolError("a blob of $sizeBytes bytes is out of bounds")
        return ((sizeBytes + chunkBytes - 1) / chunkBytes).toInt()
    }

    /** The data's frame as chunk [index] of the blob named [sha256]. */
    public fun encode(sha256: Bytes, index: Int, data: ByteArray): ByteArray {
        val frame = ByteBuffer.allocate(Limits.CHUNK_HEADER_BYTES + data.size).order(ByteOrder.LITTLE_ENDIAN)
        frame.put(sha256.array, 0, Limits.CHUNK_DIGEST_BYTES).putInt(index).putInt(crc(data)).put(data)
        return frame.array()
    }

    /** Whether a frame is of the blob of this name, without reading the rest. */
    public fun isOf(frame: ByteArray, sha256: Bytes): Boolean = frame.size >= Limits.CHUNK_DIGEST_BYTES &&
        (0 until Limits.CHUNK_DIGEST_BYTES).all { frame[it] == sha256.array[it] }

    /**
     * The chunk frames of the blob [data] that a pull asks for, in the order asked.
     *
     * All of the pull is checked before the first: raises RemoteProtocolError where it is malformed, or asks for more
     * than one may at once.
     */
    public fun frames(sha256: Bytes, data: ByteArray, pull: Pull): List<ByteArray> {
        if (pull.chunkBytes > Limits.CHUNK_MAX_BYTES) throw RemoteProtocolError("chunks of ${pull.chunkBytes} bytes")
        val chunkBytes = pull.chunkBytes.toInt()
        val count = count(data.size.toLong(), chunkBytes)
        if (pull.firsts.size != pull.counts.size || pull.firsts.size > Limits.PULL_RANGES_MAX) {
            throw RemoteProtocolError("a pull of ${pull.firsts.size} ranges with ${pull.counts.size} counts")
        }
        val ranges = pull.firsts.zip(pull.counts)
        for ((first, length) in ranges) {
            if (length < 1 || first + length > count) {
                throw RemoteProtocolError("a pull asks for chunks $first to ${first + length - 1} of $count")
            }
        }
        if (ranges.sumOf { it.second } > mostChunks(Limits.WINDOW_MAX_BYTES, chunkBytes)) {
            throw RemoteProtocolError("a pull asks for too many chunks of $chunkBytes bytes at once")
        }
        return ranges.flatMap { (first, length) ->
            (first.toInt() until (first + length).toInt()).map { index ->
                val from = index * chunkBytes
                encode(sha256, index, data.copyOfRange(from, minOf(from + chunkBytes, data.size)))
            }
        }
    }

    internal fun mostChunks(windowBytes: Int, chunkBytes: Int): Int =
        maxOf(1, minOf(windowBytes / chunkBytes, Limits.PULL_CHUNKS_MAX))

    internal fun crc(data: ByteArray): Int = CRC32().run {
        update(data)
        value.toInt()
    }
}

/**
 * Receives one blob: what to ask for now, what came, and whether the whole is what was promised.
 *
 * Asks for up to a window ahead, and for more once half of that window came, so that the link stays full and pulls stay
 * few. A chunk counts as lost when chunks asked for two pulls later came before it, or when nothing at all came for
 * [timeoutS] (doubling up to eightfold while the silence lasts, as the other side may be away). [blob] comes from a signed
 * frame; chunks that [store] already has are not asked for. Raises RemoteProtocolError for a size out of bounds.
 */
public class Assembly(
    public val blob: BlobRef,
    public val chunkBytes: Int,
    private val store: PartStore,
    windowBytes: Int = Limits.WINDOW_DEFAULT_BYTES,
    private val timeoutS: Double = Limits.CHUNK_TIMEOUT_S,
) {
    private val count = Chunks.count(blob.sizeBytes, chunkBytes)
    private val window = Chunks.mostChunks(minOf(windowBytes, Limits.WINDOW_MAX_BYTES), chunkBytes)
    private var missing = (0 until count).count { !store.has(it) }
    private val outstanding = LinkedHashMap<Int, Int>() // chunk asked for and not yet here: the pull that asked for it
    private var cursor = 0 // every chunk below is here or outstanding
    private var pull = 0
    private var newestAnswered = 0
    private var waitingSince = 0.0
    private var silences = 0

    /** Whether every chunk is here; only [finish] tells whether they are the right ones. */
    public val complete: Boolean get() = missing == 0

    /** How much of it is not here yet, at most. */
    public val missingBytes: Long get() = minOf(blob.sizeBytes, missing.toLong() * chunkBytes)

    /** When to call [requests] again if nothing comes (the past: at once), or null when complete. */
    public val nextDeadline: Double? get() = when {
        complete -> null
        outstanding.isEmpty() -> waitingSince
        else -> waitingSince + patienceS()
    }

    /** The ranges to pull now, counted as asked for; empty while there is nothing to ask. */
    public fun requests(now: Double): List<ChunkRange> {
        if (outstanding.isNotEmpty() && now >= waitingSince + patienceS()) {
            connectionLost()
            silences++
        }
        val wanted = missing - outstanding.size
        val room = window - outstanding.size
        // A pull for every chunk would cost a signature each; half a window ahead keeps the link busy.
        if (wanted == 0 || (room < wanted && 2 * room < window)) return emptyList()
        pull++
        waitingSince = now
        return take(minOf(wanted, room))
    }

    /**
     * Takes in a chunk frame, in any order, asked for or not; whether it was new.
     *
     * Raises RemoteProtocolError: malformed, of another blob, or no chunk of this one; StoreError: it could not be kept.
     * Nothing is changed then.
     */
    public fun receive(frame: ByteArray, now: Double): Boolean {
        if (frame.size <= Limits.CHUNK_HEADER_BYTES || frame.size > Limits.CHUNK_HEADER_BYTES + Limits.CHUNK_MAX_BYTES) {
            throw RemoteProtocolError("a chunk frame of ${frame.size} bytes is out of bounds")
        }
        val header = ByteBuffer.wrap(frame).order(ByteOrder.LITTLE_ENDIAN)
        val index = header.getInt(Limits.CHUNK_DIGEST_BYTES)
        val data = frame.copyOfRange(Limits.CHUNK_HEADER_BYTES, frame.size)
        if (Chunks.crc(data) != header.getInt(Limits.CHUNK_DIGEST_BYTES + 4)) {
            throw RemoteProtocolError("chunk $index is corrupt: its CRC-32 is wrong")
        }
        if (!Chunks.isOf(frame, blob.sha256)) throw RemoteProtocolError("a chunk of another blob")
        val offset = index.toLong() * chunkBytes
        if (index !in 0 until count || data.size.toLong() != minOf(chunkBytes.toLong(), blob.sizeBytes - offset)) {
            throw RemoteProtocolError("${data.size} bytes as chunk $index do not fit a blob of ${blob.sizeBytes} bytes")
        }
        if (store.has(index)) return false
        store.write(index, offset.toInt(), data)
        missing--
        waitingSince = now
        silences = 0
        answered(outstanding.remove(index) ?: 0)
        return true
    }

    /** Counts all that was asked for as lost, so that the next [requests] asks again at once. */
    public fun connectionLost(): Unit = lose(outstanding.keys.toList())

    /**
     * Checks the whole blob's SHA-256; the blob.
     *
     * Raises LocalProtocolError: chunks are missing yet; RemoteProtocolError: the hash differs. Everything is dropped
     * then; the assembly would begin anew.
     */
    public fun finish(): ByteArray {
        if (!complete) throw LocalProtocolError("blob ${blob.sha256.hex()} is not complete: $missing chunks are missing")
        val whole = store.readAll()
        if (!Suite.digest(whole).contentEquals(blob.sha256.array)) {
            store.drop()
            missing = count
            outstanding.clear()
            cursor = 0
            throw RemoteProtocolError("blob ${blob.sha256.hex()} came whole, but its SHA-256 differs: it was dropped")
        }
        return whole
    }

    private fun patienceS(): Double = timeoutS * (1 shl minOf(silences, BACKOFF_MAX))

    private fun lose(indices: List<Int>) {
        for (index in indices) {
            outstanding.remove(index)
            cursor = minOf(cursor, index)
        }
    }

    private fun answered(pull: Int) {
        // Pulls and chunks keep their order on a healthy path; one pull of leeway, as brokers may reorder.
        if (pull > newestAnswered) {
            newestAnswered = pull
            lose(outstanding.filterValues { it < pull - 1 }.keys.toList())
        }
    }

    private fun take(number: Int): List<ChunkRange> {
        val ranges = ArrayList<ChunkRange>()
        var left = number
        var index = cursor
        while (left > 0) {
            if (!store.has(index) && index !in outstanding) {
                val last = ranges.lastOrNull()
                if (last != null && last.first + last.count == index) {
                    ranges[ranges.size - 1] = ChunkRange(last.first, last.count + 1)
                } else if (ranges.size < Limits.PULL_RANGES_MAX) {
                    ranges.add(ChunkRange(index, 1))
                } else {
                    break
                }
                outstanding[index] = pull
                left--
            }
            index++
        }
        cursor = index
        return ranges
    }

    private companion object {
        const val BACKOFF_MAX = 3
    }
}
