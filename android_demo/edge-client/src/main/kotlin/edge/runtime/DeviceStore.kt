package edge.runtime

import edge.Bytes
import edge.StoreError
import edge.privacy.Mechanism
import edge.privacy.Release
import edge.privacy.Sampling
import edge.protocol.Spending
import java.io.ByteArrayInputStream
import java.io.ByteArrayOutputStream
import java.io.Closeable
import java.io.DataInputStream
import java.io.DataOutputStream
import java.io.File
import java.io.IOException
import java.security.SecureRandom

/**
 * One accepted event of the open round; [payload] and [entropy] are secret.
 *
 * [signatures] are those that its step made, each with the SHA-256 of what was signed: hardware that keeps a key draws a
 * fresh nonce each time, and what was said must be said again byte for byte.
 */
public class JournalEntry internal constructor(
    internal val at: Double,
    internal val kind: String,
    internal val payload: ByteArray,
    internal val entropy: ByteArray,
    internal val signatures: List<Pair<Bytes, Bytes>> = emptyList(),
)

/**
 * One masked input that left this device, and what the task has cost by then.
 *
 * [at] is in seconds since the epoch; [epsilon] at [delta] is spent on the task up to and with this participation, by the
 * device's own accounting; [sentBytes] and [sentSha256] are of the masked vector, which says nothing of the update;
 * [release] is the noised sum that the update may have gone into; [purpose] what the owner had agreed to then, empty where
 * nobody was asked.
 */
public data class Participation(
    val rid: Bytes,
    val task: String,
    val roundNumber: Long,
    val at: Double,
    val epsilon: Double,
    val delta: Double,
    val sentBytes: Int,
    val sentSha256: Bytes,
    val release: Release,
    val purpose: String = "",
)

/**
 * What a device must not forget, in two files: `device.log` has small facts, the rounds it left and its own ledger;
 * `round.journal` each accepted event of the open round with the entropy of its step (PROTOCOL.md 9.6).
 *
 * A restart folds the journal to the same secrets and never to others. The ledger's entry is in the very record of the
 * event that lets the masked input leave. When a round ends, that is made durable first, with its ledger's entry, and then
 * the journal's bytes are overwritten; a crash in between is completed at the next opening. Never put either file back
 * from a backup: a device that forgot what it said could say another thing. For several threads, and one
 * process.
 */
public class DeviceStore(folder: File) : Closeable {
    private val marker = File(folder, "device.begun")
    private val log = RecordFile(File(folder, "device.log"))
    private val journalFile = RecordFile(File(folder, "round.journal"))
    private val facts = HashMap<String, String>()
    private val ended = HashMap<Bytes, String>() // how, in words
    private val ledger = ArrayList<Participation>()
    private val samplings = LinkedHashMap<Bytes, Sampling>()
    private val open = ArrayList<JournalEntry>()
    private var openRid: Bytes? = null
    private var openParticipation: Participation? = null

    init {
        try {
            log.readAll().forEach(::replay)
            if (log.damaged) {
                throw StoreError(
                    "the device's store in $folder is damaged",
                    "let the device begin anew in another folder, with another identity: it forgot what it spent",
                )
            }
            journalFile.readAll().forEach(::replayEntry)
            val rid = openRid
            if (rid != null && rid in ended) {
                forgetRound()
            } else if (rid != null && journalFile.damaged) {
                // A part of what was said is not known any more: the round cannot be gone on with.
                endRound(rid, open.first().at, committed = false, detail = "the journal was damaged")
            } else if (journalFile.damaged) {
                forgetRound()
            }
            val found = facts["schema"]
            if (found == null) {
                if (marker.exists()) {
                    throw StoreError(
                        "the device's store in $folder has gone or was emptied, and with it the record of what it spent",
                        "let the device begin anew in another folder, with another identity",
                    )
                }
                put("schema", SCHEMA_VERSION, durable = true)
            } else if (found != SCHEMA_VERSION) {
                throw StoreError(
                    "the device's store in $folder has schema $found; this version reads $SCHEMA_VERSION",
                    "update this app, or let the device begin anew in another folder",
                )
            }
            marker.createNewFile()
        } catch (error: IOException) {
            close()
            throw StoreError("the device's store in $folder cannot be used: ${error.message}", UPDATE, error)
        } catch (error: StoreError) {
            close()
            throw error
        }
    }

    @Synchronized
    override fun close() {
        log.close()
        journalFile.close()
    }

    // ---- small facts

    /** A stored text, or null. */
    @Synchronized
    public fun get(key: String): String? = facts[key]

    /** A stored number, a u64; 0 where there is none. Raises StoreError where what is stored is no number. */
    @Synchronized
    public fun number(key: String): Long {
        val text = facts[key] ?: return 0
        try {
            return java.lang.Long.parseUnsignedLong(text)
        } catch (error: NumberFormatException) {
            throw StoreError("$key in the device's store is no number: $text", UPDATE, error)
        }
    }

    /** Stores a text; durable where a power cut may not undo it. */
    @Synchronized
    public fun put(key: String, value: String, durable: Boolean = false) {
        if (facts[key] == value) return
        log.append(record { fact(key, value) }, durable)
        facts[key] = value
    }

    /** Forgets a text. */
    @Synchronized
    public fun drop(key: String) {
        if (key !in facts) return
        log.append(record { fact(key, "") }, durable = true)
        facts.remove(key)
    }

    // ---- the open round

    /** The open round's journal, oldest entry first. */
    @Synchronized
    public fun journal(): List<JournalEntry> = open.toList()

    /** The round that the journal is of, or null. */
    public val journalRid: Bytes? @Synchronized get() = openRid

    /** Adds an event of round [rid], and with it what leaves the device by it. */
    @Synchronized
    internal fun append(rid: Bytes, entry: JournalEntry, participation: Participation?, durable: Boolean) {
        val bytes = record {
            writeBlob(rid.array)
            writeDouble(entry.at)
            writeText(entry.kind)
            writeBlob(entry.payload)
            writeBlob(entry.entropy)
            writeInt(entry.signatures.size)
            for ((digest, signature) in entry.signatures) {
                writeBlob(digest.array)
                writeBlob(signature.array)
            }
            writeBoolean(participation != null)
            participation?.let { write(it) }
        }
        journalFile.append(bytes, durable)
        openRid = rid
        open.add(entry)
        openParticipation = participation ?: openParticipation
    }

    /** Burns the round's id and erases its journal. */
    @Synchronized
    public fun endRound(rid: Bytes, at: Double, committed: Boolean, detail: String) {
        val participation = openParticipation
        log.append(record { end(rid, at, committed, detail, participation) }, durable = true)
        ended[rid] = detail
        participation?.let { ledger.add(it) }
        forgetRound()
    }

    private fun forgetRound() {
        open.clear()
        openRid = null
        openParticipation = null
        journalFile.erase()
    }

    /** Whether this device already left that round, or gave it what it gives once. */
    @Synchronized
    public fun hasEnded(rid: Bytes): Boolean = rid in ended || ledger.any { it.rid == rid }

    // ---- the ledger

    /** What this device took part in, oldest first; of one task, or of all. */
    @Synchronized
    public fun participations(task: String? = null): List<Participation> =
        (ledger + listOfNotNull(openParticipation)).filter { task == null || it.task == task }

    /** How each round that ended did, in words, by its id. */
    @Synchronized
    public fun outcomes(): Map<Bytes, String> = ended.toMap()

    /** How often this device took part in a task, and all that left it for any. */
    @Synchronized
    public fun spending(task: String): Spending {
        val all = participations()
        val releases = all.groupingBy { it.release }.eachCount().map { it.key to it.value.toLong() }
        return Spending(all.count { it.task == task }, releases)
    }

    /**
     * Enters what a round's training releases of each example, before it does; durable.
     *
     * A training that ended and was lost with its process is replaced by the one that was made instead.
     */
    @Synchronized
    public fun countExamples(rid: Bytes, sampling: Sampling) {
        log.append(record { sampled(rid, sampling) }, durable = true)
        samplings[rid] = sampling
    }

    /** What was released of the examples, whatever the task. */
    @Synchronized
    public fun samplings(): List<Sampling> = samplings.values.toList()

    /**
     * Erases all that tells what this device did when, and its open round.
     *
     * Of the ledger stays what each task was given and what that cost, without round, time, size, digest or purpose:
     * budgets are of a device's whole life. What was heard and served of models stays too.
     */
    @Synchronized
    public fun strip() {
        openRid?.let { endRound(it, 0.0, committed = false, detail = "") }
        val random = SecureRandom()
        fun anybody() = Bytes(ByteArray(RID_BYTES).also(random::nextBytes))
        val kept = ledger.map {
            it.copy(rid = anybody(), roundNumber = 0, at = 0.0, sentBytes = 0, sentSha256 = Bytes.EMPTY, purpose = "")
        }
        val drawn = samplings.values.map { anybody() to it }
        facts.keys.removeAll { key -> STRIPPED.any { key.startsWith(it) } }
        log.replace(
            facts.map { (key, value) -> record { fact(key, value) } } +
                kept.map { record { end(it.rid, 0.0, false, "", it) } } +
                drawn.map { (rid, sampling) -> record { sampled(rid, sampling) } },
        )
        ended.clear()
        ledger.clear()
        ledger.addAll(kept)
        samplings.clear()
        samplings.putAll(drawn)
    }

    // ---- traffic

    /** Adds to the bytes that were received and sent on a day, counted from the epoch; other days are forgotten. */
    @Synchronized
    internal fun countTraffic(day: Long, bytes: Long): Unit = put(TRAFFIC, "$day ${traffic(day) + bytes}")

    /** Bytes received and sent on a day. */
    @Synchronized
    internal fun traffic(day: Long): Long =
        facts[TRAFFIC]?.split(' ')?.takeIf { it[0] == day.toString() }?.getOrNull(1)?.toLongOrNull() ?: 0

    // ---- records

    private fun DataOutputStream.fact(key: String, value: String) {
        writeByte(FACT)
        writeText(key)
        writeText(value)
    }

    private fun DataOutputStream.end(rid: Bytes, at: Double, committed: Boolean, detail: String, spent: Participation?) {
        writeByte(ENDED)
        writeBlob(rid.array)
        writeDouble(at)
        writeBoolean(committed)
        writeText(detail)
        writeBoolean(spent != null)
        spent?.let { write(it) }
    }

    private fun DataOutputStream.sampled(rid: Bytes, sampling: Sampling) {
        writeByte(SAMPLING)
        writeBlob(rid.array)
        writeDouble(sampling.noiseMultiplier)
        writeDouble(sampling.rate)
        writeLong(sampling.steps)
    }

    private fun replay(bytes: ByteArray) {
        val input = DataInputStream(ByteArrayInputStream(bytes))
        when (val kind = input.readByte().toInt()) {
            FACT -> {
                val (key, value) = input.readText() to input.readText()
                if (value.isEmpty()) facts.remove(key) else facts[key] = value
            }
            ENDED -> {
                val rid = Bytes(input.readBlob())
                input.readDouble()
                input.readBoolean()
                ended[rid] = input.readText()
                if (input.readBoolean()) ledger.add(input.readParticipation())
            }
            SAMPLING -> {
                val rid = Bytes(input.readBlob())
                samplings[rid] = Sampling(input.readDouble(), input.readDouble(), input.readLong())
            }
            else -> throw IOException("a record of the unknown kind $kind")
        }
    }

    private fun replayEntry(bytes: ByteArray) {
        val input = DataInputStream(ByteArrayInputStream(bytes))
        openRid = Bytes(input.readBlob())
        val (at, kind) = input.readDouble() to input.readText()
        val (payload, entropy) = input.readBlob() to input.readBlob()
        val signatures = List(input.readInt()) { Bytes(input.readBlob()) to Bytes(input.readBlob()) }
        open.add(JournalEntry(at, kind, payload, entropy, signatures))
        if (input.readBoolean()) openParticipation = input.readParticipation()
    }

    private fun record(fill: DataOutputStream.() -> Unit): ByteArray {
        val bytes = ByteArrayOutputStream()
        DataOutputStream(bytes).fill()
        return bytes.toByteArray()
    }

    private fun DataOutputStream.write(value: Participation) {
        writeBlob(value.rid.array)
        writeText(value.task)
        writeLong(value.roundNumber)
        writeDouble(value.at)
        writeDouble(value.epsilon)
        writeDouble(value.delta)
        writeInt(value.sentBytes)
        writeBlob(value.sentSha256.array)
        writeRelease(value.release)
        writeText(value.purpose)
    }

    /** Older versions wrote no purpose, which stands last in a record. */
    private fun DataInputStream.readParticipation() = Participation(
        Bytes(readBlob()), readText(), readLong(), readDouble(), readDouble(), readDouble(), readInt(), Bytes(readBlob()),
        readRelease(), if (available() > 0) readText() else "",
    )

    internal companion object {
        private const val SCHEMA_VERSION = "1"
        private const val FACT = 1
        private const val ENDED = 2
        private const val SAMPLING = 3
        private const val RID_BYTES = 16
        private const val TRAFFIC = "traffic"
        private val STRIPPED = listOf("coordinator", "task/", "blobs/", TRAFFIC)
        private const val UPDATE = "check the disk's free space, or use the version of the app that wrote it"

        fun DataOutputStream.writeBlob(value: ByteArray) {
            writeInt(value.size)
            write(value)
        }

        fun DataOutputStream.writeText(value: String): Unit = writeBlob(value.toByteArray())

        fun DataInputStream.readBlob(): ByteArray {
            val size = readInt()
            if (size !in 0..available()) throw IOException("a record that is cut off")
            return ByteArray(size).also { readFully(it) }
        }

        fun DataInputStream.readText(): String = readBlob().toString(Charsets.UTF_8)

        fun DataOutputStream.writeRelease(value: Release) {
            writeByte(value.mechanism.code)
            writeDouble(value.normBound)
            writeInt(value.length)
            writeLong(value.deviceVariance)
            writeInt(value.honest)
        }

        fun DataInputStream.readRelease(): Release {
            val code = readByte().toInt()
            val mechanism = Mechanism.values().find { it.code == code } ?: throw IOException("an unknown mechanism $code")
            return Release(mechanism, readDouble(), readInt(), readLong(), readInt())
        }
    }
}
