package edge.runtime

import edge.Bytes
import edge.EdgeError
import edge.TrainingError
import edge.protocol.Session
import java.util.concurrent.ExecutorService
import java.util.concurrent.Executors
import java.util.concurrent.LinkedBlockingQueue
import java.util.concurrent.Semaphore
import java.util.concurrent.TimeUnit

/**
 * The device's loop: broker messages and timers in, the agent's publications out, training on a thread beside it.
 *
 * [run] returns when [stop] was called or `done` holds; it decides nothing. [now] tells seconds since the epoch;
 * [objections] what is against training now, by population: it is asked every few seconds, and while there is any, the
 * device joins no round there, and one that trains pauses before its next step, for as long as its round lasts. [renewal]
 * renews the certificate when that is due and the device is between rounds. [log] is told that the clock was set.
 */
public class Driver internal constructor(
    private val agent: DeviceAgent,
    private val transport: Transport,
    private val now: () -> Double,
    private val objections: () -> Map<String, List<String>>,
    private val renewal: Renewal?,
    private val log: (String) -> Unit,
) {
    public constructor(
        agent: DeviceAgent,
        transport: Transport,
        now: () -> Double = { System.currentTimeMillis() / 1e3 },
        objections: () -> Map<String, List<String>> = { emptyMap() },
    ) : this(agent, transport, now, objections, null, {})

    private val inbox = LinkedBlockingQueue<() -> Unit>()

    // A broker that sends faster than this device reads waits, instead of filling its memory.
    private val room = Semaphore(UNREAD_MAX)
    @Volatile private var isStopping = false
    @Volatile private var roundId: Bytes? = null
    @Volatile private var woken = false
    private var askedAt = Double.NEGATIVE_INFINITY
    private var seenAt = now()

    /** Ends [run], from any thread. */
    public fun stop() {
        isStopping = true
        inbox.add {}
    }

    /** Lets the agent look anew at what it asks others: the owner's consent, what is against training. */
    public fun wake() {
        woken = true
        inbox.add {}
    }

    /** Runs the device on this thread. Raises StoreError: its store failed; nothing that it does not hold was sent. */
    public fun run(done: () -> Boolean = { false }) {
        val training = Executors.newSingleThreadExecutor { Thread(it, "training").apply { isDaemon = true } }
        try {
            send(agent.start(now()), training)
            transport.launch(
                agent.subscriptions,
                { topic, payload -> came(topic, payload, training) },
                { inbox.add { send(agent.connected(now()), training) } },
            )
            while (!isStopping && !done()) turn(training)
            agent.keepTraffic()
        } finally {
            isStopping = true
            transport.stop()
            training.shutdown()
            training.awaitTermination(TRAINING_END_S, TimeUnit.SECONDS)
        }
    }

    private fun came(topic: String, payload: ByteArray, training: ExecutorService) {
        while (!room.tryAcquire(1, TimeUnit.SECONDS)) if (isStopping) return
        inbox.add {
            room.release()
            send(agent.receive(topic, payload, now()), training)
        }
    }

    private fun turn(training: ExecutorService) {
        ask(training)
        renew()
        val due = minOf(agent.nextDeadline() ?: Double.POSITIVE_INFINITY, askedAt + ASK_EVERY_S)
        val waitMs = (minOf(MAX_WAIT_S, maxOf(0.0, due - now())) * 1e3).toLong()
        inbox.poll(waitMs, TimeUnit.MILLISECONDS)?.invoke()
        watchClock(training)
        if (woken || (agent.nextDeadline() ?: Double.POSITIVE_INFINITY) <= now()) {
            if (woken) askedAt = Double.NEGATIVE_INFINITY
            woken = false
            send(agent.tick(now()), training)
        }
    }

    /** A turn takes seconds: if the clock says something else, it was set. */
    private fun watchClock(training: ExecutorService) {
        val step = now() - seenAt
        seenAt += step
        if (step < -CLOCK_STEP_S) {
            log("the clock was put back by ${(-step).toInt()} s; a round under way may be lost")
            askedAt = Double.NEGATIVE_INFINITY
            send(agent.clockSetBack(seenAt), training)
        }
    }

    private fun ask(training: ExecutorService) {
        if (now() < askedAt + ASK_EVERY_S) return
        val found = objections()
        askedAt = now()
        send(agent.considerConditions(found, askedAt), training)
    }

    /** Nothing is taken in meanwhile: no round begins. */
    private fun renew() {
        if (renewal != null && now() >= renewal.nextAt && agent.isBetweenRounds) {
            renewal.attempt(now())?.let { agent.adopt(it) }
        }
    }

    private fun send(messages: List<Outgoing>, training: ExecutorService) {
        for (message in messages) {
            if (transport.publish(message.topic, message.payload, message.expiryS)) agent.sent(message.payload.size, now())
        }
        roundId = Session.roundId(agent.state)
        agent.takeJob()?.let { job -> training.execute { train(job, training) } }
    }

    private fun train(job: TrainingJob, training: ExecutorService) {
        // What is trained for a round that is gone only keeps the next one waiting.
        fun isOver() = isStopping || roundId != job.plan.rid
        val shouldStop = {
            while (!isOver() && agent.isPaused(job)) Thread.sleep(PAUSE_MS)
            isOver()
        }
        try {
            val update = agent.train(job, now, shouldStop) ?: return
            inbox.add { send(agent.trained(job, update, now()), training) }
        } catch (error: EdgeError) {
            inbox.add { send(agent.failed(job, error, now()), training) }
        } catch (error: RuntimeException) {
            // A fault of this client's own ends the round, not the app.
            val failure = TrainingError("training failed: $error", cause = error)
            inbox.add { send(agent.failed(job, failure, now()), training) }
        } catch (error: OutOfMemoryError) {
            // What it took is free again, and the next round is another chance.
            val failure = TrainingError("training takes more memory than this device gives", "train a smaller model", error)
            inbox.add { send(agent.failed(job, failure, now()), training) }
        }
    }

    private companion object {
        const val MAX_WAIT_S = 5.0
        const val ASK_EVERY_S = 10.0
        const val UNREAD_MAX = 64
        const val PAUSE_MS = 1_000L
        const val TRAINING_END_S = 10L

        /** By how much the clock may be off from one turn of the loop to the next before it was set. */
        const val CLOCK_STEP_S = 60.0
    }
}
