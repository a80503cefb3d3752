package edge.runtime

import edge.ConfigError
import java.io.DataInputStream
import java.io.IOException
import java.io.OutputStream
import java.net.InetSocketAddress
import java.net.Socket
import java.util.ArrayDeque
import java.util.Random
import java.util.concurrent.TimeUnit
import java.util.concurrent.locks.ReentrantLock
import javax.net.ssl.SSLException
import javax.net.ssl.SSLSocket
import javax.net.ssl.SSLSocketFactory
import kotlin.concurrent.thread
import kotlin.concurrent.withLock

/**
 * A connection to an MQTT broker that comes back by itself: MQTT 5 where the broker speaks it, else 3.1.1.
 *
 * Sessions are clean and there is no will: nothing in the protocol relies on a broker to keep, order or deliver a message
 * (PROTOCOL.md 7), so what was under way when a connection breaks is dropped here and repeated by the agent. [tls] gives, for
 * each connection, what makes the sockets for mqtts URLs; [password] goes with the URL's user; [random] draws the pauses
 * between attempts, [log] is told why a connection ended, and [failed] where none came about.
 */
public class MqttTransport(
    private val broker: BrokerUrl,
    private val clientId: String,
    private val tls: (() -> SSLSocketFactory)? = null,
    private val password: String? = null,
    private val keepAliveS: Int = 30,
    private val random: Random = Random(),
    private val log: (String) -> Unit = {},
    private val failed: (IOException) -> Unit = {},
) : Transport {
    private val lock = ReentrantLock()
    private val changed = lock.newCondition()
    private var stopped = false
    private var connection: Connection? = null
    private var version = MqttVersion.V5
    private var thread: Thread? = null

    init {
        if (broker.tls && tls == null) throw ConfigError("an mqtts broker needs the device's certificate", "pass tls")
    }

    override fun launch(
        subscriptions: List<String>,
        onMessage: (String, ByteArray) -> Unit,
        onConnected: () -> Unit,
    ) {
        thread = thread(name = "mqtt-$clientId", isDaemon = true) {
            var failures = 0
            while (!lock.withLock { stopped }) {
                var connected = false
                try {
                    connectOnce(subscriptions, onMessage) {
                        failures = 0
                        connected = true
                        log("$clientId is connected to ${broker.host}:${broker.port}")
                        onConnected()
                    }
                } catch (error: IOException) {
                    if (!lock.withLock { stopped }) {
                        log("$clientId: ${Tls.whyUnreachable(error).second}; it keeps trying")
                        if (!connected) failed(error)
                    }
                }
                pause(failures++)
            }
        }
    }

    override fun publish(topic: String, payload: ByteArray, expiryS: Int): Boolean =
        lock.withLock { connection }?.offer(topic, payload, expiryS) ?: false

    override fun stop() {
        val open = lock.withLock {
            stopped = true
            changed.signalAll()
            connection
        }
        open?.goodbye()
        thread?.join(STOP_MS)
    }

    /** Full jitter: the n-th pause is drawn from 0 to min(60 s, 1 s * 2^n). */
    private fun pause(failures: Int) {
        val longest = minOf(PAUSE_MAX_MS, 1000L shl minOf(failures, 6))
        var left = TimeUnit.MILLISECONDS.toNanos((random.nextDouble() * longest).toLong())
        lock.withLock {
            while (!stopped && left > 0) left = changed.awaitNanos(left)
        }
    }

    private fun connectOnce(
        subscriptions: List<String>,
        onMessage: (String, ByteArray) -> Unit,
        onSubscribed: () -> Unit,
    ) {
        val plain = HeldSocket()
        val socket = open(plain)
        val made = try {
            shakeHands(socket).also { plain.release() }
        } catch (error: IOException) {
            socket.close()
            throw error
        }
        try {
            val isCurrent = lock.withLock {
                if (!stopped) connection = made
                !stopped
            }
            if (isCurrent) made.run(subscriptions, onMessage, onSubscribed)
        } finally {
            lock.withLock { connection = null }
            made.close()
        }
    }

    private fun open(plain: Socket): Socket {
        try {
            plain.tcpNoDelay = true
            plain.connect(InetSocketAddress(broker.host, broker.port), CONNECT_MS)
            plain.soTimeout = CONNECT_MS
            if (!broker.tls || tls == null) return plain
            val secure = tls().createSocket(plain, broker.host, broker.port, true) as SSLSocket
            secure.sslParameters = secure.sslParameters.apply {
                endpointIdentificationAlgorithm = "HTTPS" // the host's name must be in the broker's certificate
                protocols = secure.supportedProtocols.filter { it == "TLSv1.2" || it == "TLSv1.3" }.toTypedArray()
            }
            secure.startHandshake()
            return secure
        } catch (error: IOException) {
            plain.close()
            throw IOException("cannot reach ${broker.host}:${broker.port}: ${error.message}", error)
        }
    }

    private fun shakeHands(socket: Socket): Connection {
        val spoken = version
        val packets = MqttPackets(spoken)
        val output = socket.getOutputStream()
        val input = DataInputStream(socket.getInputStream().buffered())
        output.write(packets.connect(clientId, broker.user, password, keepAliveS))
        output.flush()
        val answer = try {
            packets.readConnAck(packets.read(input))
        } catch (error: IOException) {
            // With TLS 1.3 a broker says only now what it thinks of this side's certificate.
            if (error is SSLException) throw IOException("cannot reach ${broker.host}:${broker.port}: ${error.message}", error)
            // An old broker may hang up on a version that it does not know.
            version = other(spoken)
            throw IOException("the broker did not answer as one of MQTT ${spoken.name}", error)
        }
        if (answer.code != 0) {
            if (answer.code == UNSUPPORTED_V5 || answer.code == UNSUPPORTED_V3) version = other(spoken)
            throw IOException("the broker refused the connection with code ${answer.code}")
        }
        val keepAlive = answer.keepAliveS ?: keepAliveS
        socket.soTimeout = if (keepAlive == 0) 0 else 1500 * keepAlive
        return Connection(socket, input, output, packets, answer, keepAlive)
    }

    private fun other(spoken: MqttVersion) = if (spoken == MqttVersion.V5) MqttVersion.V3 else MqttVersion.V5

    /** One connection: its caller's thread reads, another one writes. */
    private inner class Connection(
        private val socket: Socket,
        private val input: DataInputStream,
        private val output: OutputStream,
        private val packets: MqttPackets,
        private val limits: ConnAck,
        private val keepAlive: Int,
    ) {
        private val gate = ReentrantLock()
        private val work = gate.newCondition()
        private val control = ArrayDeque<ByteArray>()
        private val waiting = ArrayDeque<Message>()
        private var waitingBytes = 0L
        private val unacknowledged = HashSet<Int>()
        private var lastId = 0
        private var ended = false

        fun run(subscriptions: List<String>, onMessage: (String, ByteArray) -> Unit, onSubscribed: () -> Unit) {
            control(packets.subscribe(SUBSCRIBE_ID, subscriptions))
            thread(name = "mqtt-$clientId-writer", isDaemon = true) { write() }
            while (true) {
                val packet = packets.read(input)
                when (packet.type) {
                    MqttPackets.PUBLISH -> {
                        val (topic, id, payload) = packets.readPublish(packet)
                        if (packet.qos > 0) control(packets.publishAck(id))
                        onMessage(topic, payload)
                    }
                    MqttPackets.PUBACK -> acknowledged(packet.read().readUnsignedShort())
                    MqttPackets.SUBACK -> {
                        if (packets.readSubscribeCodes(packet).any { it >= 0x80 }) {
                            throw IOException("the broker refused the device's topics")
                        }
                        onSubscribed()
                    }
                    MqttPackets.PINGRESP -> Unit
                    MqttPackets.DISCONNECT -> throw IOException("the broker closed the connection")
                    else -> throw IOException("an unexpected packet of type ${packet.type}")
                }
            }
        }

        fun offer(topic: String, payload: ByteArray, expiryS: Int): Boolean = gate.withLock {
            if (ended || waitingBytes + payload.size > WAITING_MAX_BYTES || payload.size + 512L > limits.packetMaxBytes) {
                return false
            }
            waiting.add(Message(topic, payload, expiryS))
            waitingBytes += payload.size
            work.signal()
            true
        }

        fun goodbye() {
            control(packets.disconnect())
            gate.withLock {
                // What is waiting may still go, if it goes at once.
                var left = TimeUnit.MILLISECONDS.toNanos(GOODBYE_MS)
                while (!ended && control.isNotEmpty() && left > 0) left = work.awaitNanos(left)
            }
            close()
        }

        fun close() {
            gate.withLock {
                ended = true
                work.signalAll()
            }
            try {
                socket.close()
            } catch (_: IOException) {
                // It is gone either way.
            }
        }

        private fun control(packet: ByteArray) = gate.withLock {
            control.add(packet)
            work.signal()
        }

        private fun acknowledged(id: Int) = gate.withLock {
            unacknowledged.remove(id)
            work.signal()
        }

        private fun write() {
            try {
                while (true) {
                    val packet = next() ?: break
                    output.write(packet)
                    output.flush()
                    gate.withLock { work.signalAll() }
                }
            } catch (_: IOException) {
                // The reader meets the same and says so.
            }
            close()
        }

        /** What to write next: a ping where there was nothing for long; null where the connection ended. */
        private fun next(): ByteArray? = gate.withLock {
            var patience = if (keepAlive == 0) Long.MAX_VALUE else TimeUnit.SECONDS.toNanos(keepAlive.toLong()) / 2
            while (!ended) {
                control.poll()?.let { return it }
                if (unacknowledged.size < limits.receiveMaximum) {
                    waiting.poll()?.let { return publication(it) }
                }
                if (patience <= 0) return packets.ping()
                patience = work.awaitNanos(patience)
            }
            null
        }

        private fun publication(message: Message): ByteArray {
            waitingBytes -= message.payload.size
            do lastId = lastId % 65_535 + 1 while (lastId in unacknowledged || lastId == SUBSCRIBE_ID)
            unacknowledged.add(lastId)
            return packets.publish(lastId, message.topic, message.payload, message.expiryS)
        }
    }

    private class Message(val topic: String, val payload: ByteArray, val expiryS: Int)

    private companion object {
        const val CONNECT_MS = 20_000
        const val PAUSE_MAX_MS = 60_000L
        const val STOP_MS = 5_000L
        const val GOODBYE_MS = 1_000L
        const val WAITING_MAX_BYTES = 64L shl 20
        const val SUBSCRIBE_ID = 1
        const val UNSUPPORTED_V5 = 0x84
        const val UNSUPPORTED_V3 = 0x01
    }
}
