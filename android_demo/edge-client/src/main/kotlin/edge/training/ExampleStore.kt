package edge.training

import edge.ConfigError
import edge.StoreError
import edge.runtime.RecordFile
import edge.secagg.Suite
import java.io.Closeable
import java.io.File
import java.io.IOException
import java.io.RandomAccessFile
import java.nio.ByteBuffer
import java.nio.ByteOrder
import java.security.GeneralSecurityException
import java.security.SecureRandom
import javax.crypto.Cipher
import javax.crypto.spec.GCMParameterSpec
import javax.crypto.spec.SecretKeySpec
import kotlin.math.abs
import kotlin.math.pow

/** One field of an example: its kind of number, and the shape of one row. */
public data class Field(val dtype: Dtype, val shape: List<Int>) {
    internal val bytes: Int get() = shape.fold(dtype.bytes) { size, it -> size * it }
}

/** What an example looks like: its fields by name, inputs as the model names them, and the target "y". */
public typealias Schema = Map<String, Field>

/** A field of float32: `f32(16)` a vector of 16, `f32(1, 8, 8)` an image, `f32()` one number. */
public fun f32(vararg shape: Int): Field = Field(Dtype.FLOAT32, shape.toList())

/** A field of int64, shaped like [f32]: `i64()` a label. */
public fun i64(vararg shape: Int): Field = Field(Dtype.INT64, shape.toList())

/** A field of uint8, such as the pixels of an image: `u8(28, 28)`. */
public fun u8(vararg shape: Int): Field = Field(Dtype.UINT8, shape.toList())

/** Where a key of 32 bytes is kept: a file, or under the platform's key store. */
public interface KeyPlace {
    /** The key, or null where there is none; raises StoreError. */
    public fun load(): ByteArray?

    /** Keeps a key, over one that is there; raises StoreError. */
    public fun save(key: ByteArray)

    /** Forgets the key; raises StoreError. */
    public fun erase()
}

/** Keeps a key in a file that only its owner reads. */
public class FileKey(private val file: File) : KeyPlace {
    override fun load(): ByteArray? = guarded { if (file.isFile) file.readBytes() else null }

    override fun save(key: ByteArray): Unit = guarded {
        val part = File(file.path + ".part")
        part.delete()
        part.createNewFile()
        RecordFile.makePrivate(part)
        RandomAccessFile(part, "rw").use {
            it.write(key)
            it.fd.sync()
        }
        if (!part.renameTo(file)) throw IOException("it cannot be renamed")
    }

    override fun erase(): Unit = guarded {
        if (file.isFile) {
            RandomAccessFile(file, "rw").use {
                it.write(ByteArray(file.length().toInt()))
                it.fd.sync()
            }
            if (!file.delete()) throw IOException("it cannot be deleted")
        }
    }

    private inline fun <T> guarded(action: () -> T): T = try {
        action()
    } catch (error: IOException) {
        throw StoreError("cannot use the key $file: ${error.message}", "check the folder's permissions", error)
    }
}

/**
 * The app's examples on the device: one file of sealed rows, capped by their number and age.
 *
 * Examples never leave this file but for training on the device. Each row is sealed on its own (AES-GCM) under the key in
 * [keyPlace]: without it nothing of a row can be read, so that erasing it erases them all. The file is a ring of
 * [maxRows] places: a new row takes the oldest one's. Of new rows the share [holdout], in [0, 1), is kept to judge models by
 * and never trained on. Rows older than [ttlS] seconds count as gone, and are overwritten when
 * met. What was added outlives the process; a power cut may take the last rows along. [now] tells seconds since the epoch.
 * For several threads, and one process.
 *
 * Raises StoreError: it cannot be opened, holds another schema, or its key is missing or another.
 */
public class ExampleStore(
    private val file: File,
    public val schema: Schema,
    private val maxRows: Int = 2_000,
    private val ttlS: Double = Double.POSITIVE_INFINITY,
    private val keyPlace: KeyPlace = FileKey(File(file.path + ".key")),
    private val now: () -> Double = { System.currentTimeMillis() / 1e3 },
    internal val holdout: Double = 0.0,
) : Examples, Closeable {
    private val random = SecureRandom()
    private val rowBytes: Int
    private val slotBytes: Int
    private val header: ByteArray
    private val handle: RandomAccessFile
    private var key: ByteArray
    private var isBegun = false // the file has its header, and the key is kept
    private val rows = ArrayDeque<Row>() // oldest first
    private var newest = 0L

    /** Where a row lies, which one it is (negative where it is held out), and when it was added. */
    private class Row(val slot: Int, val number: Long, val at: Double) {
        val isHeldOut: Boolean get() = number < 0
    }

    init {
        if (maxRows < 1) throw ConfigError("$maxRows rows are no cap", "keep at least one")
        if (!(ttlS > 0)) throw ConfigError("examples cannot live for $ttlS seconds", "choose a positive time")
        if (!(holdout >= 0 && holdout < 1)) {
            throw ConfigError("a share of $holdout cannot be held out", "choose one from 0 to below 1")
        }
        if (schema.isEmpty() || schema.keys.any { !NAME.matches(it) }) {
            throw ConfigError("a schema with the fields ${schema.keys} is none", "name at least one field, as models do")
        }
        rowBytes = schema.values.sumOf { it.bytes }
        slotBytes = ROW_HEAD_BYTES + rowBytes + TAG_BYTES
        header = headerOf(schema, maxRows)
        handle = guarded("open") {
            file.absoluteFile.parentFile?.mkdirs()
            if (file.createNewFile()) RecordFile.makePrivate(file)
            RandomAccessFile(file, "rw")
        }
        try {
            key = open()
            guarded("read") { list() }
        } catch (error: StoreError) {
            handle.close()
            throw error
        }
    }

    override fun close() {
        guarded("close") { handle.close() }
    }

    /**
     * Adds one example: a value for every field, a number, an array of numbers or a [Tensor].
     *
     * Raises StoreError: it does not fit the schema, is not finite, or cannot be written.
     */
    public fun add(vararg fields: Pair<String, Any>) {
        val given = fields.toMap()
        if (given.keys != schema.keys) {
            throw StoreError("an example of ${given.keys} is not one of ${schema.keys}", "give each field of the schema once")
        }
        val plain = ByteBuffer.allocate(rowBytes)
        for ((name, field) in schema) plain.put(Values.bytes(name, field, given.getValue(name)))
        synchronized(this) { guarded("write") { append(plain.array()) } }
    }

    private fun append(plain: ByteArray) {
        expire()
        if (!isBegun) begin() // it was erased when nothing could be written
        val slot = if (rows.size < maxRows) freeSlot() else rows.removeFirst().slot
        newest++
        val number = if (isHeldOut(newest)) -newest else newest
        val at = now()
        val nonce = ByteArray(NONCE_BYTES).also(random::nextBytes)
        val head = ByteBuffer.allocate(ROW_HEAD_BYTES).putLong(number).putDouble(at).put(nonce).array()
        val sealed = cipher(Cipher.ENCRYPT_MODE, key, head).doFinal(plain)
        handle.seek(place(slot))
        handle.write(head + sealed)
        rows.addLast(Row(slot, number, at))
    }

    /** The same rows wherever it is asked, and no pattern that an app's own could meet. */
    private fun isHeldOut(number: Long): Boolean {
        val place = ByteBuffer.allocate(8).order(ByteOrder.LITTLE_ENDIAN).putLong(number).array()
        val digest = ByteBuffer.wrap(Suite.digest(HELD_OUT, place)).order(ByteOrder.LITTLE_ENDIAN)
        return (digest.getLong() ushr 11) < holdout * 2.0.pow(53)
    }

    private fun freeSlot(): Int {
        val taken = rows.mapTo(HashSet()) { it.slot }
        return (0 until maxRows).first { it !in taken }
    }

    /** How many rows there are. */
    override val count: Int get() = count(null)

    /** How many rows there are: those held out, those to train on, or null for all. */
    public fun count(heldOut: Boolean?): Int = synchronized(this) {
        guarded("write") { expire() }
        rows.count { heldOut == null || it.isHeldOut == heldOut }
    }

    /**
     * The rows there are now, oldest first, to read while others are added: those that go meanwhile are left out.
     *
     * It lists those [heldOut], those to train on, or null for all; the [newest] so many at most.
     */
    public fun snapshot(heldOut: Boolean? = null, newest: Int = Int.MAX_VALUE): Examples = synchronized(this) {
        guarded("write") { expire() }
        val listed = rows.filter { heldOut == null || it.isHeldOut == heldOut }.takeLast(newest)
        object : Examples {
            override val count = listed.size

            override fun take(places: List<Int>) = read(places.map { listed[it] })
        }
    }

    override fun take(places: List<Int>): Map<String, Tensor> = snapshot().take(places)

    /**
     * Erases all examples, and the key they were sealed with first; the store is empty then, under a new key.
     *
     * Raises StoreError: the file cannot be written; once the key is gone, no row can be read any more.
     */
    public fun erase(): Unit = synchronized(this) {
        keyPlace.erase()
        rows.clear()
        isBegun = false
        key = ByteArray(KEY_BYTES).also(random::nextBytes)
        guarded("erase") { handle.setLength(0) }
        begin()
    }

    private fun read(wanted: List<Row>): Map<String, Tensor> = synchronized(this) {
        val found = wanted.mapNotNull { guarded("read") { open(it) } }
        var at = 0
        schema.mapValues { (_, field) ->
            val column = ByteBuffer.allocate(field.bytes * found.size)
            for (row in found) column.put(row, at, field.bytes)
            at += field.bytes
            Tensor(field.dtype, listOf(found.size) + field.shape, column.array())
        }
    }

    /** A row's bytes; null where it is gone or was damaged. */
    private fun open(row: Row): ByteArray? {
        val slot = ByteArray(slotBytes)
        handle.seek(place(row.slot))
        handle.readFully(slot)
        if (ByteBuffer.wrap(slot).getLong() != row.number) return null
        return try {
            cipher(Cipher.DECRYPT_MODE, key, slot).doFinal(slot, ROW_HEAD_BYTES, slotBytes - ROW_HEAD_BYTES)
        } catch (_: GeneralSecurityException) {
            null
        }
    }

    /** Overwrites rows that are too old. */
    private fun expire() {
        while (rows.isNotEmpty() && rows.first().at + ttlS <= now()) {
            handle.seek(place(rows.removeFirst().slot))
            handle.write(ByteArray(slotBytes))
        }
    }

    // ---- the file: a header, 32 bytes that tell the key, then the places

    private fun open(): ByteArray {
        val found = keyPlace.load()
        val length = guarded("read") { handle.length() }
        if (length == 0L) {
            key = found ?: ByteArray(KEY_BYTES).also(random::nextBytes)
            begin()
            return key
        }
        val start = guarded("read") {
            handle.seek(0)
            ByteArray(minOf(length, header.size + CHECK_BYTES.toLong()).toInt()).also { handle.readFully(it) }
        }
        if (start.size < header.size + CHECK_BYTES || !start.copyOf(header.size).contentEquals(header)) {
            throw StoreError("$file holds other examples, or as many as another cap allows", "use another name for these")
        }
        if (found == null || !checkOf(found).contentEquals(start.copyOfRange(header.size, start.size))) {
            throw StoreError("the key of the examples in $file is missing or another", "remove the file to begin anew")
        }
        isBegun = true
        return found
    }

    private fun begin() {
        keyPlace.save(key)
        guarded("write") {
            handle.seek(0)
            handle.write(header + checkOf(key))
            handle.fd.sync()
        }
        isBegun = true
    }

    private fun list() {
        val there = ArrayList<Row>()
        val places = ((handle.length() - place(0)) / slotBytes).toInt()
        for (slot in 0 until minOf(places, maxRows)) {
            handle.seek(place(slot))
            val number = handle.readLong()
            if (number != 0L) there.add(Row(slot, number, handle.readDouble()))
        }
        rows.addAll(there.sortedBy { abs(it.number) })
        newest = rows.lastOrNull()?.let { abs(it.number) } ?: 0
    }

    private fun place(slot: Int): Long = header.size + CHECK_BYTES + slot.toLong() * slotBytes

    private fun checkOf(key: ByteArray): ByteArray = Suite.digest("edge-sdk/examples/1\u0000".toByteArray(), key)

    private fun cipher(mode: Int, key: ByteArray, head: ByteArray): Cipher {
        val cipher = Cipher.getInstance("AES/GCM/NoPadding")
        val nonce = head.copyOfRange(ROW_HEAD_BYTES - NONCE_BYTES, ROW_HEAD_BYTES)
        cipher.init(mode, SecretKeySpec(key, "AES"), GCMParameterSpec(8 * TAG_BYTES, nonce))
        cipher.updateAAD(header)
        cipher.updateAAD(head, 0, ROW_HEAD_BYTES)
        return cipher
    }

    private inline fun <T> guarded(what: String, action: () -> T): T = try {
        action()
    } catch (error: IOException) {
        throw StoreError("cannot $what the examples in $file: ${error.message}", "check the disk's free space", error)
    } catch (error: GeneralSecurityException) {
        throw StoreError("cannot $what the examples in $file: ${error.message}", cause = error)
    }

    private companion object {
        const val KEY_BYTES = 32
        const val CHECK_BYTES = 32
        const val NONCE_BYTES = 12
        const val TAG_BYTES = 16
        const val ROW_HEAD_BYTES = 8 + 8 + NONCE_BYTES
        val HELD_OUT = "edge-sdk/held-out/1".toByteArray()
        val NAME = Regex("[A-Za-z_][A-Za-z0-9_]*(\\.[A-Za-z0-9_]+)*")

        fun headerOf(schema: Schema, maxRows: Int): ByteArray {
            val fields = schema.entries.joinToString("\n") { (name, field) -> "$name ${field.dtype.title} ${field.shape}" }
            val text = fields.toByteArray()
            return ByteBuffer.allocate(16 + text.size)
                .put("EDGEROWS".toByteArray()).putInt(maxRows).putInt(text.size).put(text).array()
        }
    }
}

/** Values of an app as the bytes of a field. */
internal object Values {
    /** The bytes, little-endian; raises StoreError where the value does not fit the field or is not finite. */
    fun bytes(name: String, field: Field, value: Any): ByteArray {
        val tensor = when (value) {
            is Tensor -> value
            is FloatArray -> if (field.dtype == Dtype.FLOAT32) sized(field, value.size) { Tensor.of(value, field.shape) } else null
            is LongArray -> if (field.dtype == Dtype.INT64) sized(field, value.size) { Tensor.of(value, field.shape) } else null
            is ByteArray -> if (field.dtype.bytes == 1) sized(field, value.size) { Tensor(field.dtype, field.shape, value) } else null
            is Number -> if (field.shape.isEmpty()) one(field.dtype, value) else null
            is Boolean -> if (field.dtype == Dtype.BOOL && field.shape.isEmpty()) {
                Tensor(Dtype.BOOL, emptyList(), byteArrayOf(if (value) 1 else 0))
            } else {
                null
            }
            else -> null
        }
        if (tensor == null || tensor.dtype != field.dtype || tensor.shape != field.shape) {
            throw StoreError(
                "$name is to be ${field.dtype.title}${field.shape}, not this ${value.javaClass.simpleName}",
                "give it as the schema says",
            )
        }
        if (!tensor.isFinite()) throw StoreError("$name holds NaN or infinity", "leave such examples out")
        return tensor.data
    }

    private inline fun sized(field: Field, count: Int, make: () -> Tensor): Tensor? =
        if (count == field.bytes / field.dtype.bytes) make() else null

    private fun one(dtype: Dtype, value: Number): Tensor? {
        val data = ByteBuffer.allocate(dtype.bytes).order(ByteOrder.LITTLE_ENDIAN)
        val isWhole = value is Long || value is Int || value is Short || value is Byte
        when (dtype) {
            Dtype.FLOAT32 -> data.putFloat(value.toFloat())
            Dtype.FLOAT64 -> data.putDouble(value.toDouble())
            Dtype.INT64 -> if (isWhole) data.putLong(value.toLong()) else return null
            Dtype.INT32 -> if (isWhole && value.toLong() == value.toInt().toLong()) data.putInt(value.toInt()) else return null
            else -> return null
        }
        return Tensor(dtype, emptyList(), data.array())
    }
}
