package edge.protocol

import com.google.flatbuffers.FlatBufferBuilder
import edge.Bytes
import edge.Coded
import edge.LocalProtocolError
import edge.RemoteProtocolError
import edge.privacy.Mechanism
import java.nio.ByteBuffer
import java.nio.ByteOrder
import java.nio.charset.CharacterCodingException
import java.nio.charset.CodingErrorAction

/**
 * A frame cut into its parts and not yet trusted.
 *
 * [kind] is a known message's number; [certificate] is DER, empty where none travelled; [body] is FlatBuffers;
 * [signed] are the bytes of the frame that the signature covers, without domain and device id.
 */
public class Frame internal constructor(
    public val kind: Int,
    public val certificate: Bytes,
    public val body: ByteArray,
    public val signature: ByteArray,
    private val signed: ByteArray,
) {
    /** The exact bytes that the sender signed, if the frame concerns this device. */
    public fun signedFor(deviceId: String): ByteArray = Codec.signedBytes(deviceId, signed)
}

/**
 * The one place where bytes become messages and messages bytes (PROTOCOL.md 5 and 6).
 *
 * Reading goes authenticate, size-check, parse: [readFrame] cuts the bytes by their stated and checked lengths, the
 * caller verifies whose they are, and only then is FlatBuffers touched. Its Java code has no verifier, so whatever it
 * raises on malformed bytes becomes a RemoteProtocolError here.
 */
public object Codec {
    public const val BROADCAST: String = "*"
    private const val VERSION = 1
    private const val HEADER_BYTES = 12
    private const val SIGNATURE_BYTES = 64
    private const val CERTIFICATE_MAX_BYTES = 4096
    private const val MAGIC = 0x4645 // "EF"
    private const val PULL = 64
    private val DOMAIN = "edge-sdk/frame/1\u0000".toByteArray()
    private val TO_DEVICE = (1..10).toSet() + PULL
    private val TO_COORDINATOR = (32..38).toSet() + PULL

    /** The number of a message's kind on the wire. */
    public fun kindOf(message: Message): Int = when (message) {
        is Announcement -> 1
        is Rejection -> 2
        is Plan -> 3
        is Roster -> 4
        is ShareDelivery -> 5
        is Survivors -> 6
        is Receipt -> 7
        is Outcome -> 8
        is Large -> 9
        is Quorum -> 10
        is CheckIn -> 32
        is AdvertiseKeys -> 33
        is ShareKeys -> 34
        is MaskedInput -> 35
        is UnmaskingShares -> 36
        is Decline -> 37
        is Endorsement -> 38
        is Pull -> PULL
    }

    /**
     * The signed frame of a message; deterministic where [sign] is.
     *
     * [deviceId] is the device that sends or receives it, or [BROADCAST]; [certificate] is the sender's where the reader
     * may not know it. Raises LocalProtocolError where the frame would be larger than any reader takes.
     */
    public fun writeFrame(
        message: Message,
        deviceId: String,
        certificate: Bytes = Bytes.EMPTY,
        sign: (ByteArray) -> ByteArray,
    ): ByteArray {
        val body = encode(message)
        val size = HEADER_BYTES + certificate.size + body.size + SIGNATURE_BYTES
        if (size > Limits.LARGE_FRAME_MAX_BYTES) {
            throw LocalProtocolError("a message of ${body.size} bytes is larger than any reader takes")
        }
        val frame = ByteBuffer.allocate(size).order(ByteOrder.LITTLE_ENDIAN)
        frame.putShort(MAGIC.toShort()).put(VERSION.toByte()).put(kindOf(message).toByte())
        frame.putShort(certificate.size.toShort()).putShort(0).putInt(body.size)
        frame.put(certificate.array).put(body)
        frame.put(sign(signedBytes(deviceId, frame.array().copyOf(size - SIGNATURE_BYTES))))
        return frame.array()
    }

    /**
     * Cuts a frame by its stated lengths, without believing it; [large] where it was pulled as the content of a Large.
     *
     * Raises RemoteProtocolError: too large, too short, another magic, version or kind, lengths that do not add up.
     */
    public fun readFrame(data: ByteArray, large: Boolean = false): Frame {
        val limit = if (large) Limits.LARGE_FRAME_MAX_BYTES else Limits.CONTROL_FRAME_MAX_BYTES
        if (data.size > limit) refuse("a frame of ${data.size} bytes is over the limit of $limit")
        if (data.size < HEADER_BYTES + SIGNATURE_BYTES) refuse("${data.size} bytes are too few for a frame")
        val header = ByteBuffer.wrap(data).order(ByteOrder.LITTLE_ENDIAN)
        if (header.getShort(0).toInt() != MAGIC) refuse("not a frame: the magic bytes are missing")
        if (header.get(2).toInt() != VERSION) {
            throw RemoteProtocolError(
                "frame version ${header.get(2)}, but this side speaks $VERSION",
                "update the older of the two sides",
            )
        }
        val kind = header.get(3).toInt() and 0xff
        if (kind !in TO_DEVICE && kind !in TO_COORDINATOR) refuse("a frame of the unknown kind $kind")
        val certificateBytes = header.getShort(4).toInt() and 0xffff
        val bodyBytes = header.getInt(8).toLong() and 0xffffffffL
        val bodyAt = HEADER_BYTES + certificateBytes
        if (header.getShort(6).toInt() != 0 || certificateBytes > CERTIFICATE_MAX_BYTES ||
            bodyAt + bodyBytes + SIGNATURE_BYTES != data.size.toLong()
        ) {
            refuse("the frame's lengths do not add up")
        }
        val end = data.size - SIGNATURE_BYTES
        return Frame(
            kind = kind,
            certificate = Bytes(data.copyOfRange(HEADER_BYTES, bodyAt)),
            body = data.copyOfRange(bodyAt, end),
            signature = data.copyOfRange(end, data.size),
            signed = data.copyOfRange(0, end),
        )
    }

    /** The message in an authenticated frame from the coordinator. */
    public fun parseForDevice(frame: Frame): ToDevice {
        if (frame.kind !in TO_DEVICE) refuse("a message of kind ${frame.kind} does not travel to a device")
        return decode(frame.kind, frame.body) as ToDevice
    }

    /** The message in an authenticated frame from a device. */
    public fun parseForCoordinator(frame: Frame): ToCoordinator {
        if (frame.kind !in TO_COORDINATOR) refuse("a message of kind ${frame.kind} does not travel to a coordinator")
        return decode(frame.kind, frame.body) as ToCoordinator
    }

    /** The FlatBuffers body of a message; equal messages give equal bytes. */
    public fun encode(message: Message): ByteArray = Writer().write(message)

    /**
     * The message of the given kind in a FlatBuffers body.
     *
     * Raises RemoteProtocolError: malformed in any way that the fields' types and fixed lengths show.
     */
    public fun decode(kind: Int, body: ByteArray): Message = try {
        Reader.read(kind, ByteBuffer.wrap(body))
    } catch (error: IndexOutOfBoundsException) {
        throw malformed(kind, error)
    } catch (error: IllegalArgumentException) {
        throw malformed(kind, error)
    } catch (error: CharacterCodingException) {
        throw malformed(kind, error)
    } catch (error: NegativeArraySizeException) {
        throw malformed(kind, error)
    }

    internal fun signedBytes(deviceId: String, signed: ByteArray): ByteArray =
        DOMAIN + deviceId.toByteArray() + byteArrayOf(0) + signed

    private fun malformed(kind: Int, error: Exception) =
        RemoteProtocolError("a malformed message of kind $kind: ${error.message}", cause = error)

    private fun refuse(what: String): Nothing = throw RemoteProtocolError(what)
}

/** Messages from the accessors that flatc wrote; what it raises, besides FlatBuffers' own, is IllegalArgumentException. */
private object Reader {
    private const val DIGEST = 32
    private const val ROUND_ID = 16
    private const val PUBLIC_KEY = 32
    private const val SIGNATURE = 64

    fun read(kind: Int, data: ByteBuffer): Message = when (kind) {
        1 -> announcement(edge.wire.Announcement.getRootAsAnnouncement(data))
        2 -> edge.wire.Rejection.getRootAsRejection(data).run {
            Rejection(text(taskAsByteBuffer()), coded(reason()), number(retryAfterS()), number(retrySpreadS()))
        }
        3 -> plan(edge.wire.Plan.getRootAsPlan(data))
        4 -> edge.wire.Roster.getRootAsRoster(data).run {
            Roster(
                fixed(ridAsByteBuffer(), ROUND_ID), fixed(rootAsByteBuffer(), DIGEST), size(), index(), degree(),
                threshold(), bytes(proofAsByteBuffer()), rows(neighbours()), committee(), quorum(),
            )
        }
        5 -> edge.wire.ShareDelivery.getRootAsShareDelivery(data).run {
            ShareDelivery(
                fixed(ridAsByteBuffer(), ROUND_ID), bytes(sharersAsByteBuffer()), numbers(indicesAsByteBuffer()),
                bytes(boxesAsByteBuffer()),
            )
        }
        6 -> edge.wire.Survivors.getRootAsSurvivors(data).run {
            Survivors(
                fixed(ridAsByteBuffer(), ROUND_ID), fixed(rootAsByteBuffer(), DIGEST), bytes(sharersAsByteBuffer()),
                bytes(survivorsAsByteBuffer()),
            )
        }
        7 -> edge.wire.Receipt.getRootAsReceipt(data).run {
            Receipt(fixed(ridAsByteBuffer(), ROUND_ID), fixed(sha256AsByteBuffer(), DIGEST), coded(status()))
        }
        8 -> edge.wire.Outcome.getRootAsOutcome(data).run {
            Outcome(fixed(ridAsByteBuffer(), ROUND_ID), committed(), coded(reason()), reports())
        }
        9 -> Large(blob(edge.wire.Large.getRootAsLarge(data).frame()))
        10 -> edge.wire.Quorum.getRootAsQuorum(data).run {
            Quorum(
                fixed(ridAsByteBuffer(), ROUND_ID), fixed(rootAsByteBuffer(), DIGEST), bytes(sharersAsByteBuffer()),
                bytes(survivorsAsByteBuffer()), rows(members()), bytes(endorsementsAsByteBuffer()),
                numbers(indicesAsByteBuffer()), bytes(statementsAsByteBuffer()),
            )
        }
        32 -> edge.wire.CheckIn.getRootAsCheckIn(data).run {
            CheckIn(
                text(taskAsByteBuffer()), fixed(ridAsByteBuffer(), ROUND_ID), text(sdkVersionAsByteBuffer()),
                text(runtimeVersionAsByteBuffer()),
            )
        }
        33 -> edge.wire.AdvertiseKeys.getRootAsAdvertiseKeys(data).run {
            AdvertiseKeys(
                fixed(ridAsByteBuffer(), ROUND_ID), fixed(channelPublicAsByteBuffer(), PUBLIC_KEY),
                fixed(maskPublicAsByteBuffer(), PUBLIC_KEY), fixed(signatureAsByteBuffer(), SIGNATURE),
            )
        }
        34 -> edge.wire.ShareKeys.getRootAsShareKeys(data).run {
            ShareKeys(
                fixed(ridAsByteBuffer(), ROUND_ID), fixed(commitmentAsByteBuffer(), DIGEST),
                numbers(indicesAsByteBuffer()), bytes(boxesAsByteBuffer()),
            )
        }
        35 -> edge.wire.MaskedInput.getRootAsMaskedInput(data).run {
            MaskedInput(
                fixed(ridAsByteBuffer(), ROUND_ID), blob(vector()), bytes(inlineAsByteBuffer()),
                bytes(statementAsByteBuffer()),
            )
        }
        36 -> edge.wire.UnmaskingShares.getRootAsUnmaskingShares(data).run {
            UnmaskingShares(
                fixed(ridAsByteBuffer(), ROUND_ID), fixed(survivorsDigestAsByteBuffer(), DIGEST),
                numbers(indicesAsByteBuffer()), bytes(sharesAsByteBuffer()),
            )
        }
        37 -> edge.wire.Decline.getRootAsDecline(data).run {
            Decline(fixed(ridAsByteBuffer(), ROUND_ID), coded(reason()), text(detailAsByteBuffer()))
        }
        38 -> edge.wire.Endorsement.getRootAsEndorsement(data).run {
            Endorsement(
                fixed(ridAsByteBuffer(), ROUND_ID), fixed(survivorsDigestAsByteBuffer(), DIGEST),
                fixed(signatureAsByteBuffer(), SIGNATURE),
            )
        }
        64 -> edge.wire.Pull.getRootAsPull(data).run {
            Pull(
                fixed(sha256AsByteBuffer(), DIGEST), chunkBytes(), numbers(firstsAsByteBuffer()),
                numbers(countsAsByteBuffer()),
            )
        }
        else -> throw IllegalArgumentException("an unknown kind")
    }

    private fun announcement(table: edge.wire.Announcement) = table.run {
        Announcement(
            sequence(), text(populationAsByteBuffer()), text(taskAsByteBuffer()), coded(state()),
            fixed(ridAsByteBuffer(), ROUND_ID), roundNumber(), rounds(), number(selectionWindowS()), modelVersion(),
            blob(bundle()), blob(checkpoint()),
        )
    }

    private fun plan(table: edge.wire.Plan) = table.run {
        Plan(
            fixed(ridAsByteBuffer(), ROUND_ID), suite(), text(taskAsByteBuffer()), roundNumber(), modelVersion(),
            blob(bundle()), blob(checkpoint()), goalCount(), minReports(), number(corruptShare()),
            number(dropoutShare()), coded(consistency()), dimension(), bits(), coded<Mechanism>(mechanism()),
            localNoise(), number(clipNorm()), number(clipBit()), number(scale()), number(normBound()),
            deviceVariance(), number(noiseMultiplier()), number(epsilon()), number(delta()), participationCap(),
            epochs(), batchSize(), maxSteps(), number(learningRate()), number(expiresAfterS()), number(proximal()),
        )
    }

    private fun rows(table: edge.wire.Neighbours?): List<Neighbour> {
        requireNotNull(table) { "the neighbours are missing" }
        val index = numbers(table.indexAsByteBuffer())
        val columns = listOf(
            cut(table.certificateAsByteBuffer(), numbers(table.certificateLengthsAsByteBuffer())),
            column(table.channelPublicAsByteBuffer(), PUBLIC_KEY),
            column(table.maskPublicAsByteBuffer(), PUBLIC_KEY),
            column(table.signatureAsByteBuffer(), SIGNATURE),
            cut(table.proofAsByteBuffer(), numbers(table.proofLengthsAsByteBuffer())),
        )
        require(columns.all { it.size == index.size }) { "columns of different lengths" }
        return index.mapIndexed { row, number ->
            Neighbour(number, columns[0][row], columns[1][row], columns[2][row], columns[3][row], columns[4][row])
        }
    }

    private fun column(data: ByteBuffer?, size: Int): List<Bytes> {
        val all = bytes(data).array
        require(all.size % size == 0) { "${all.size} bytes are no column of $size each" }
        return List(all.size / size) { Bytes(all.copyOfRange(it * size, (it + 1) * size)) }
    }

    private fun cut(data: ByteBuffer?, lengths: List<Long>): List<Bytes> {
        val all = bytes(data).array
        require(lengths.sum() == all.size.toLong()) { "the lengths of a column do not add up" }
        var at = 0
        return lengths.map { length ->
            at += length.toInt()
            Bytes(all.copyOfRange(at - length.toInt(), at))
        }
    }

    private fun blob(table: edge.wire.BlobRef?): BlobRef {
        requireNotNull(table) { "a blob's reference is missing" }
        return BlobRef(fixed(table.sha256AsByteBuffer(), DIGEST), table.sizeBytes())
    }

    private fun bytes(data: ByteBuffer?): Bytes {
        if (data == null) return Bytes.EMPTY
        return Bytes(ByteArray(data.remaining()).also { data.get(it) })
    }

    private fun fixed(data: ByteBuffer?, size: Int): Bytes {
        val found = bytes(data)
        require(found.size == size) { "a field of ${found.size} bytes must have $size" }
        return found
    }

    private fun numbers(data: ByteBuffer?): List<Long> {
        if (data == null) return emptyList()
        val words = data.order(ByteOrder.LITTLE_ENDIAN).asIntBuffer()
        return List(words.remaining()) { words.get(it).toLong() and 0xffffffffL }
    }

    private fun text(data: ByteBuffer?): String {
        if (data == null) return ""
        val decoder = Charsets.UTF_8.newDecoder().onMalformedInput(CodingErrorAction.REPORT)
        return decoder.onUnmappableCharacter(CodingErrorAction.REPORT).decode(data).toString()
    }

    private fun number(value: Double): Double {
        require(!value.isNaN()) { "a number that is none" }
        return value
    }

    private inline fun <reified E> coded(code: Int): E where E : Enum<E>, E : Coded =
        requireNotNull(enumValues<E>().find { it.code == code }) { "$code is no ${E::class.java.simpleName}" }
}

/** Bodies through the builders that flatc wrote. A field of the default value is left out. */
private class Writer {
    private val builder = FlatBufferBuilder(1024)

    fun write(message: Message): ByteArray {
        builder.finish(table(message))
        return builder.sizedByteArray()
    }

    private fun table(message: Message): Int = when (message) {
        is Announcement -> announcement(message)
        is Rejection -> {
            val task = text(message.task)
            edge.wire.Rejection.createRejection(
                builder, task, message.reason.code, message.retryAfterS, message.retrySpreadS,
            )
        }
        is Plan -> plan(message)
        is Roster -> {
            val rid = bytes(message.rid)
            val root = bytes(message.root)
            val proof = bytes(message.proof)
            val neighbours = neighbours(message.neighbours)
            edge.wire.Roster.createRoster(
                builder, rid, root, message.size, message.index, message.degree, message.threshold, proof, neighbours,
                message.committee, message.quorum,
            )
        }
        is ShareDelivery -> edge.wire.ShareDelivery.createShareDelivery(
            builder, bytes(message.rid), bytes(message.sharers), numbers(message.indices), bytes(message.boxes),
        )
        is Survivors -> edge.wire.Survivors.createSurvivors(
            builder, bytes(message.rid), bytes(message.root), bytes(message.sharers), bytes(message.survivors),
        )
        is Quorum -> edge.wire.Quorum.createQuorum(
            builder, bytes(message.rid), bytes(message.root), bytes(message.sharers), bytes(message.survivors),
            neighbours(message.members), bytes(message.endorsements), numbers(message.indices),
            bytes(message.statements),
        )
        is Receipt ->
            edge.wire.Receipt.createReceipt(builder, bytes(message.rid), bytes(message.sha256), message.status.code)
        is Outcome -> edge.wire.Outcome.createOutcome(
            builder, bytes(message.rid), message.committed, message.reason.code, message.reports,
        )
        is Large -> edge.wire.Large.createLarge(builder, blob(message.frame))
        is CheckIn -> edge.wire.CheckIn.createCheckIn(
            builder, text(message.task), bytes(message.rid), text(message.sdkVersion), text(message.runtimeVersion),
        )
        is AdvertiseKeys -> edge.wire.AdvertiseKeys.createAdvertiseKeys(
            builder, bytes(message.rid), bytes(message.channelPublic), bytes(message.maskPublic),
            bytes(message.signature),
        )
        is ShareKeys -> edge.wire.ShareKeys.createShareKeys(
            builder, bytes(message.rid), bytes(message.commitment), numbers(message.indices), bytes(message.boxes),
        )
        is MaskedInput -> edge.wire.MaskedInput.createMaskedInput(
            builder, bytes(message.rid), blob(message.vector), bytes(message.inline), bytes(message.statement),
        )
        is Endorsement -> edge.wire.Endorsement.createEndorsement(
            builder, bytes(message.rid), bytes(message.survivorsDigest), bytes(message.signature),
        )
        is UnmaskingShares -> edge.wire.UnmaskingShares.createUnmaskingShares(
            builder, bytes(message.rid), bytes(message.survivorsDigest), numbers(message.indices),
            bytes(message.shares),
        )
        is Decline ->
            edge.wire.Decline.createDecline(builder, bytes(message.rid), message.reason.code, text(message.detail))
        is Pull -> edge.wire.Pull.createPull(
            builder, bytes(message.sha256), message.chunkBytes, numbers(message.firsts), numbers(message.counts),
        )
    }

    private fun announcement(message: Announcement): Int = edge.wire.Announcement.createAnnouncement(
        builder, message.sequence, text(message.population), text(message.task), message.state.code,
        bytes(message.rid), message.roundNumber, message.rounds, message.selectionWindowS, message.modelVersion,
        blob(message.bundle), blob(message.checkpoint),
    )

    private fun plan(message: Plan): Int = edge.wire.Plan.createPlan(
        builder, bytes(message.rid), message.suite, text(message.task), message.roundNumber, message.modelVersion,
        blob(message.bundle), blob(message.checkpoint), message.goalCount, message.minReports, message.corruptShare,
        message.dropoutShare, message.consistency.code, message.dimension, message.bits, message.mechanism.code,
        message.localNoise, message.clipNorm, message.clipBit, message.scale, message.normBound,
        message.deviceVariance, message.noiseMultiplier, message.epsilon, message.delta, message.participationCap,
        message.epochs, message.batchSize, message.maxSteps, message.learningRate, message.expiresAfterS,
        message.proximal,
    )

    private fun neighbours(entries: List<Neighbour>): Int = edge.wire.Neighbours.createNeighbours(
        builder, numbers(entries.map { it.index }), joined(entries) { it.certificate },
        numbers(entries.map { it.certificate.size.toLong() }), joined(entries) { it.channelPublic },
        joined(entries) { it.maskPublic }, joined(entries) { it.signature }, joined(entries) { it.proof },
        numbers(entries.map { it.proof.size.toLong() }),
    )

    private fun joined(entries: List<Neighbour>, field: (Neighbour) -> Bytes): Int {
        val all = ByteBuffer.allocate(entries.sumOf { field(it).size })
        for (entry in entries) all.put(field(entry).array)
        return builder.createByteVector(all.array())
    }

    private fun blob(reference: BlobRef): Int =
        edge.wire.BlobRef.createBlobRef(builder, bytes(reference.sha256), reference.sizeBytes)

    private fun bytes(value: Bytes): Int = builder.createByteVector(value.array)

    private fun text(value: String): Int = builder.createString(value)

    private fun numbers(values: List<Long>): Int {
        builder.startVector(4, values.size, 4)
        for (value in values.asReversed()) builder.addInt(value.toInt())
        return builder.endVector()
    }
}
