package edge.runtime

import edge.Bytes
import edge.RemoteProtocolError
import edge.protocol.Assembly
import edge.protocol.BlobRef
import edge.protocol.Chunks
import edge.protocol.Limits
import edge.protocol.MemoryParts
import edge.protocol.PartStore
import edge.protocol.Pull

/** One blob on its way; [isFrame] where it is a frame of the coordinator's. */
internal class Download(val assembly: Assembly, val parts: PartStore, val isFrame: Boolean)

/**
 * What a device is fetching: blobs for its cache, and frames of the coordinator's that are too large for one message.
 *
 * [blobs] keeps what came of blobs over restarts; frames are kept in memory. Knows chunks, not why they are wanted.
 */
internal class Downloads(private val blobs: BlobCache) {
    private val open = LinkedHashMap<Bytes, Download>()

    val isEmpty: Boolean get() = open.isEmpty()

    operator fun contains(sha256: Bytes): Boolean = sha256 in open

    /** What is still to come of all of them. */
    val missingBytes: Long get() = open.values.sumOf { it.assembly.missingBytes }

    /** Those of which everything is here. */
    val whole: List<Download> get() = open.values.filter { it.assembly.complete }

    /** When each next needs [requests]. */
    val deadlines: List<Double> get() = open.values.mapNotNull { it.assembly.nextDeadline }

    /** Begins to fetch a blob, or goes on with it; raises StoreError where there is no room. */
    fun want(blob: BlobRef) {
        if (blob.sha256 !in open) add(blob, blobs.parts(blob, Limits.CHUNK_DEFAULT_BYTES), isFrame = false)
    }

    /** Begins to fetch a frame. One at a time: what a device lacks is the newest, and its memory is bounded. */
    fun wantFrame(blob: BlobRef) {
        open.values.removeAll { it.isFrame && it.assembly.blob.sha256 != blob.sha256 }
        if (blob.sha256 !in open) add(blob, MemoryParts(blob.sizeBytes.toInt()), isFrame = true)
    }

    private fun add(blob: BlobRef, parts: PartStore, isFrame: Boolean) {
        open[blob.sha256] = Download(Assembly(blob, Limits.CHUNK_DEFAULT_BYTES, parts), parts, isFrame)
    }

    /** Takes in a chunk; the download that it completes. Raises RemoteProtocolError or StoreError. */
    fun receive(payload: ByteArray, now: Double): Download? {
        val download = open.values.find { Chunks.isOf(payload, it.assembly.blob.sha256) }
            ?: throw RemoteProtocolError("a chunk that was not asked for")
        download.assembly.receive(payload, now)
        return if (download.assembly.complete) download else null
    }

    /**
     * A complete download's bytes, checked; it is one no longer.
     *
     * Raises RemoteProtocolError: they are not what was promised; it begins anew.
     */
    fun finish(download: Download): ByteArray {
        val data = download.assembly.finish()
        open.remove(download.assembly.blob.sha256)
        download.parts.remove()
        return data
    }

    /** What to ask for now. */
    fun requests(now: Double): List<Pull> = open.values.mapNotNull { download ->
        val ranges = download.assembly.requests(now)
        if (ranges.isEmpty()) {
            null
        } else {
            val (firsts, counts) = ranges.map { it.first.toLong() } to ranges.map { it.count.toLong() }
            Pull(download.assembly.blob.sha256, Limits.CHUNK_DEFAULT_BYTES.toLong(), firsts, counts)
        }
    }

    /** What was asked for may never come. */
    fun connectionLost(): Unit = open.values.forEach { it.assembly.connectionLost() }

    /** Stops; what came of blobs stays. */
    fun close() {
        open.values.forEach { it.parts.close() }
        open.clear()
    }
}
