package edge.runtime

import edge.Authority
import edge.StoreError
import edge.Training
import edge.protocol.AdvertiseKeys
import edge.runtime.Desk.Companion.rid
import java.io.File
import java.util.concurrent.CountDownLatch
import java.util.concurrent.TimeUnit
import kotlin.concurrent.thread
import org.junit.jupiter.api.Assertions.assertEquals
import org.junit.jupiter.api.Assertions.assertFalse
import org.junit.jupiter.api.Assertions.assertThrows
import org.junit.jupiter.api.Assertions.assertTrue
import org.junit.jupiter.api.Test
import org.junit.jupiter.api.io.TempDir

/** The loop around an agent: it ends between two steps of training. */
class DriverTest {
    @TempDir
    lateinit var folder: File
    private val authority = Authority(Desk.START)

    private object Nowhere : Transport {
        override fun launch(subscriptions: List<String>, onMessage: (String, ByteArray) -> Unit, onConnected: () -> Unit) = Unit

        override fun publish(topic: String, payload: ByteArray, expiryS: Int): Boolean = false

        override fun stop() = Unit
    }

    /** An agent whose process ended while it trained. */
    private fun inTraining(): Desk {
        Desk(folder, authority = authority).use { desk ->
            desk.announce("first", "a", 1)
            assertTrue(desk.serve(desk.tell(desk.plan("a", 1))).any { it is AdvertiseKeys })
        }
        return Desk(folder, authority = authority)
    }

    @Test
    fun `stopping ends training before its next step, and the round stays open`() {
        inTraining().use { desk ->
            val (began, go) = CountDownLatch(1) to CountDownLatch(1)
            val steps = ArrayList<Int>()
            desk.learners.getValue("first").beforeStep = { step ->
                steps.add(step)
                if (step == 2) {
                    began.countDown()
                    go.await()
                }
            }
            val driver = Driver(desk.agent, Nowhere, { Desk.START })
            val running = thread { driver.run() }
            assertTrue(began.await(LIMIT_S, TimeUnit.SECONDS))
            driver.stop()
            go.countDown()
            running.join(1_000 * LIMIT_S)
            assertFalse(running.isAlive)
            assertEquals(listOf(0, 1, 2), steps)
            assertEquals(rid(1), desk.store.journalRid)
            assertTrue(desk.events.any { it is Training })
        }
    }

    @Test
    fun `a store that fails ends the run with what to do, and the round is taken up where it was`() {
        inTraining().use { desk ->
            desk.learners.getValue("first").beforeStep = { if (it == 0) desk.store.close() }
            val error = assertThrows(StoreError::class.java) { Driver(desk.agent, Nowhere, { Desk.START }).run() }
            assertTrue("free space" in error.hint)
        }
        Desk(folder, authority = authority).use { desk ->
            desk.start()
            assertEquals(rid(1), desk.agent.takeJob()?.plan?.rid)
        }
    }

    private companion object {
        const val LIMIT_S = 60L
    }
}
