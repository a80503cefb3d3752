package edge.runtime

import edge.Bytes
import edge.StoreError
import edge.protocol.Codec
import edge.protocol.Event
import edge.protocol.Plan
import edge.protocol.RoundMessage
import edge.protocol.Spending
import edge.runtime.DeviceStore.Companion.readRelease
import edge.runtime.DeviceStore.Companion.writeRelease
import edge.secagg.Suite
import java.io.ByteArrayInputStream
import java.io.ByteArrayOutputStream
import java.io.DataInputStream
import java.io.DataOutputStream
import java.io.IOException

/**
 * Session events as entries of the device's journal, and back: the bytes from which a restart folds its state.
 *
 * A message is kept as the bytes that came, so that nothing is encoded twice. Knows the events and the codec, no store.
 */
internal object Journal {
    private const val PLAN = "plan"
    private const val READY = "ready"
    private const val TRAINED = "trained"
    private const val RECEIVED = "received-" // and the number of the message's kind

    /** The kind and payload of an accepted event that does not end the round; [body] of its message, as it came. */
    fun fromEvent(event: Event, body: ByteArray): Pair<String, ByteArray> = when (event) {
        is Event.PlanReceived -> {
            val bytes = ByteArrayOutputStream()
            DataOutputStream(bytes).run {
                writeInt(event.spending.participations)
                writeInt(event.spending.releases.size)
                for ((release, count) in event.spending.releases) {
                    writeRelease(release)
                    writeLong(count)
                }
                write(body)
            }
            PLAN to bytes.toByteArray()
        }
        Event.Ready -> READY to ByteArray(0)
        is Event.Trained -> TRAINED to event.update.array
        is Event.Received -> RECEIVED + Codec.kindOf(event.message) to body
        is Event.Failed, Event.Tick, Event.Superseded -> throw IllegalArgumentException("it only ends a round")
    }

    /** The event of an entry; raises StoreError or RemoteProtocolError where it cannot be read. */
    fun toEvent(entry: JournalEntry): Event = when {
        entry.kind == PLAN -> planReceived(entry.payload)
        entry.kind == READY -> Event.Ready
        entry.kind == TRAINED -> Event.Trained(Bytes(entry.payload))
        entry.kind.startsWith(RECEIVED) -> {
            val kind = entry.kind.removePrefix(RECEIVED).toIntOrNull() ?: throw unreadable(entry.kind)
            Event.Received(Codec.decode(kind, entry.payload) as? RoundMessage ?: throw unreadable(entry.kind))
        }
        else -> throw unreadable(entry.kind)
    }

    private fun planReceived(payload: ByteArray): Event {
        try {
            val input = DataInputStream(ByteArrayInputStream(payload))
            val participations = input.readInt()
            val releases = List(input.readInt()) { input.readRelease() to input.readLong() }
            val body = ByteArray(input.available()).also { input.readFully(it) }
            val plan = Codec.decode(PLAN_KIND, body) as Plan
            return Event.PlanReceived(plan, Bytes(Suite.digest(body)), Spending(participations, releases))
        } catch (error: IOException) {
            throw StoreError("the device's journal holds a plan that cannot be read", cause = error)
        }
    }

    private const val PLAN_KIND = 3

    private fun unreadable(kind: String) =
        StoreError("the device's journal holds an unknown event '$kind'", "use the version that wrote it")
}
