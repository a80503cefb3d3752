package edge

import edge.training.FileKey
import edge.training.f32
import edge.training.i64
import java.io.File
import java.security.interfaces.ECPublicKey
import java.util.concurrent.CountDownLatch
import java.util.concurrent.TimeUnit
import kotlin.concurrent.thread
import kotlinx.coroutines.CoroutineScope
import kotlinx.coroutines.Dispatchers
import kotlinx.coroutines.cancel
import kotlinx.coroutines.launch
import kotlinx.coroutines.runBlocking
import org.junit.jupiter.api.AfterEach
import org.junit.jupiter.api.Assertions.assertEquals
import org.junit.jupiter.api.Assertions.assertFalse
import org.junit.jupiter.api.Assertions.assertNull
import org.junit.jupiter.api.Assertions.assertThrows
import org.junit.jupiter.api.Assertions.assertTrue
import org.junit.jupiter.api.Test
import org.junit.jupiter.api.io.TempDir

/** The app developer's verbs, of a device whose broker does not answer. */
class EdgeClientTest {
    @TempDir
    lateinit var home: File
    private val now = System.currentTimeMillis() / 1e3
    private val authority = Authority(now)
    private val member = authority.member("device-0", "device")
    private val schema = mapOf("x" to f32(2), "y" to i64())
    private val scope = CoroutineScope(Dispatchers.Unconfined) // whoever emits calls the collector
    private val open = ArrayList<EdgeClient>()

    private fun client(configure: EdgeClientSettings.() -> Unit = { identity = authority.identity(member) }) = EdgeClient(home) {
        signer = member.key.public as ECPublicKey
        coordinator("mqtt://127.0.0.1:1")
        configure()
    }.also { open.add(it) }

    @AfterEach
    fun close() {
        scope.cancel()
        open.forEach { it.close() }
    }

    private fun EdgeClient.onEvent(action: (DeviceEvent) -> Unit) {
        scope.launch { events.collect { action(it) } }
    }

    /** Tells when the client has met its broker's silence in each of so many populations. */
    private fun EdgeClient.unreached(count: Int) = CountDownLatch(count).also { latch ->
        onEvent { if (it is Unreachable) latch.countDown() }
    }

    private fun CountDownLatch.within() = assertTrue(await(LIMIT_S, TimeUnit.SECONDS))

    @Test
    fun `it starts, says of each population that nobody answers, stops, and starts again`() {
        val edge = client()
        edge.join("first")
        edge.join("second")
        repeat(2) {
            val unreached = edge.unreached(2)
            edge.start()
            unreached.within()
            assertFalse(edge.isComplete())
            edge.stop()
        }
    }

    @Test
    fun `it runs until that holds, one at a time`() {
        val edge = client()
        edge.join("first")
        val began = CountDownLatch(1)
        var done = false
        val running = thread { edge.run { done.also { began.countDown() } } }
        began.within()
        assertTrue("runs already" in assertThrows(ConfigError::class.java) { edge.start() }.message.orEmpty())
        assertThrows(ConfigError::class.java) { edge.join("second") }
        done = true
        edge.stop()
        running.join(1_000 * LIMIT_S)
        assertFalse(running.isAlive)
    }

    @Test
    fun `training now is cancelled, and another run may begin`() {
        val edge = client()
        edge.join("first")
        val unreached = edge.unreached(1)
        runBlocking(Dispatchers.Default) {
            val training = launch { edge.trainNow("first") }
            unreached.within()
            training.cancel()
            training.join()
        }
        edge.stop()
        edge.start()
        edge.stop()
        assertThrows(ConfigError::class.java) { runBlocking { edge.trainNow("second") } }
    }

    @Test
    fun `what cannot be is refused with what to do`() {
        assertThrows(IdentityError::class.java) { client { } }
        val edge = client()
        assertTrue("no population" in assertThrows(ConfigError::class.java) { edge.start() }.message.orEmpty())
        edge.join("first")
        assertThrows(ConfigError::class.java) { edge.join("first") }
        assertThrows(ConfigError::class.java) { edge.join("First") }
        assertThrows(ConfigError::class.java) { client() } // the folder is taken
    }

    @Test
    fun `who is not enrolled says so, keeps trying, and stops at once`() {
        File(home, "registrar.crt").writeText(authority.pem)
        val edge = client { enrol("https://127.0.0.1:1", "a token") }
        assertEquals("", edge.deviceId)
        edge.join("first")
        val failed = CountDownLatch(1)
        edge.onEvent { if (it is Deferred && "not enrolled" in it.reason) failed.countDown() }
        edge.start()
        failed.within()
        edge.stop()
        assertEquals("", edge.deviceId)
    }

    @Test
    fun `a withdrawal leaves the models, the revoked consent and nothing else`() {
        val edge = client()
        File(home, "identity").mkdirs()
        File(home, "identity/identity.key").writeText("secret")
        File(home, "models/first").mkdirs()
        val taps = edge.examples("taps", schema)
        taps.add("x" to floatArrayOf(1f, 2f), "y" to 1L)
        File(home, "other.examples").writeText("of an earlier version of the app")
        FileKey(File(home, "other.examples.key")).save(ByteArray(32))
        edge.join("first", taps)
        edge.consent.grant("improve typing", "3")
        val unreached = edge.unreached(1)
        edge.start()
        unreached.within()
        edge.withdraw()
        assertFalse(edge.consent.granted)
        assertEquals(
            setOf("device.log", "device.begun", "round.journal", "lock", "models"),
            home.list().orEmpty().toSet(),
        )
        assertTrue("withdrew" in assertThrows(ConfigError::class.java) { edge.start() }.message.orEmpty())
        assertNull(edge.model("first").installed)
    }

    @Test
    fun `who withdraws where events are told is heard when the run ends`() {
        val edge = client()
        val taps = edge.examples("taps", schema)
        edge.join("first", taps)
        val withdrawn = CountDownLatch(1)
        edge.onEvent {
            if (it is Deferred && withdrawn.count > 0) {
                edge.withdraw()
                withdrawn.countDown()
            }
        }
        edge.join("second") { listOf("not charging") }
        edge.run()
        withdrawn.within()
        assertFalse(File(home, "taps.examples").exists())
    }

    @Test
    fun `a withdrawal that was cut off is completed by the next client`() {
        client().use { edge ->
            edge.examples("taps", schema).add("x" to floatArrayOf(1f, 2f), "y" to 1L)
        }
        edge.runtime.DeviceStore(home).use { it.put("withdrawing", "1") }
        val edge = client()
        assertFalse(File(home, "taps.examples").exists())
        assertFalse(File(home, "taps.examples.key").exists())
        edge.join("first")
        edge.start()
        edge.stop()
    }

    private companion object {
        const val LIMIT_S = 60L
    }
}
