package edge.runtime

import edge.Bytes
import edge.ConfigError
import edge.StoreError
import edge.privacy.Mechanism
import edge.privacy.Release
import edge.privacy.Sampling
import java.io.File
import java.io.RandomAccessFile
import org.junit.jupiter.api.Assertions.assertEquals
import org.junit.jupiter.api.Assertions.assertFalse
import org.junit.jupiter.api.Assertions.assertNull
import org.junit.jupiter.api.Assertions.assertThrows
import org.junit.jupiter.api.Assertions.assertTrue
import org.junit.jupiter.api.Test
import org.junit.jupiter.api.io.TempDir

/** What a device must not forget: through restarts, half-written records and damage. */
class DeviceStoreTest {
    @TempDir
    lateinit var folder: File

    private val rid = Bytes(ByteArray(16) { it.toByte() })
    private val release = Release(Mechanism.SKELLAM, 30.0, 16, 20, 20)
    private val journal get() = File(folder, "round.journal")

    private fun <T> opened(use: (DeviceStore) -> T): T = DeviceStore(folder).use(use)

    private fun entry(kind: String) = JournalEntry(1.5, kind, kind.toByteArray(), ByteArray(32) { 7 })

    private fun participation() =
        Participation(rid, "task", 3, 2.5, 0.5, 1e-5, 100, Bytes(ByteArray(32)), release)

    @Test
    fun `facts and the open round outlive the process`() {
        opened {
            it.put("sequence/task", "18446744073709551615")
            it.append(rid, entry("plan"), null, durable = false)
            it.append(rid, entry("reported"), participation(), durable = true)
        }
        opened {
            assertEquals(-1L, it.number("sequence/task"))
            assertEquals(listOf("plan", "reported"), it.journal().map { entry -> entry.kind })
            assertEquals(rid, it.journalRid)
            assertEquals(listOf(participation()), it.participations("task"))
            assertEquals(listOf(release to 1L), it.spending("other").releases)
            assertEquals(listOf(1, 0), listOf("task", "other").map { task -> it.spending(task).participations })
        }
    }

    @Test
    fun `a round that ended is burnt, its journal is overwritten and its cost is kept`() {
        val secret = ByteArray(32) { 7 }
        opened {
            it.append(rid, entry("reported"), participation(), durable = true)
            assertTrue(journal.readBytes().toList().windowed(32).any { bytes -> bytes == secret.toList() })
            it.endRound(rid, 3.0, committed = true, detail = "committed")
            assertEquals(0, journal.length())
        }
        opened {
            assertTrue(it.hasEnded(rid))
            assertNull(it.journalRid)
            assertEquals(listOf(participation()), it.participations())
        }
    }

    @Test
    fun `a crash between the end of a round and the journal's erasure is completed`() {
        opened {
            it.append(rid, entry("reported"), participation(), durable = true)
            val kept = journal.readBytes()
            it.endRound(rid, 3.0, committed = false, detail = "left")
            journal.writeBytes(kept)
        }
        opened {
            assertEquals(emptyList<JournalEntry>(), it.journal())
            assertEquals(1, it.participations().size)
        }
        assertEquals(0, journal.length())
    }

    @Test
    fun `a record that was half written is as if it never was`() {
        opened { it.append(rid, entry("plan"), null, durable = true) }
        val whole = journal.length()
        opened { it.append(rid, entry("ready"), null, durable = false) }
        val both = journal.readBytes()
        for (size in whole until both.size) {
            journal.writeBytes(both.copyOf(size.toInt()))
            opened { assertEquals(listOf("plan"), it.journal().map { entry -> entry.kind }) }
        }
    }

    @Test
    fun `a journal that the disk damaged ends its round`() {
        opened {
            it.append(rid, entry("plan"), null, durable = true)
            it.append(rid, entry("ready"), null, durable = true)
            it.append(rid, entry("roster"), null, durable = true)
        }
        val size = journal.length() / 3
        RandomAccessFile(journal, "rw").use {
            it.seek(size + 40)
            it.write(0x55)
        }
        opened {
            assertTrue(it.hasEnded(rid))
            assertEquals(emptyList<JournalEntry>(), it.journal())
        }
    }

    @Test
    fun `a ledger that the disk damaged is not begun anew in silence`() {
        opened {
            it.put("a", "1")
            it.put("b", "2")
        }
        val log = File(folder, "device.log")
        RandomAccessFile(log, "rw").use {
            it.seek(12)
            it.write(0x55)
        }
        val error = assertThrows(StoreError::class.java) { DeviceStore(folder) }
        assertTrue(error.message.orEmpty().contains("damaged"))
        assertFalse(error.hint.isEmpty())
    }

    @Test
    fun `consent is off until it is granted, and every change is on record`() {
        opened { store ->
            val consent = Consent(store, { 5.0 })
            assertFalse(consent.granted)
            assertThrows(ConfigError::class.java) { consent.grant(" ", "1") }
            consent.grant("improve typing, on this phone", "3")
            assertTrue(consent.granted)
            consent.revoke()
            consent.revoke()
        }
        opened { store ->
            val consent = Consent(store, { 6.0 })
            assertFalse(consent.granted)
            assertEquals(listOf(true, false), consent.history().map { it.granted })
            assertEquals("improve typing, on this phone", consent.newest?.purpose)
        }
    }

    @Test
    fun `what training released of the examples is counted once for a round`() {
        val sampling = Sampling(1.1, 0.25, 12)
        opened {
            it.countExamples(rid, sampling)
            it.countExamples(rid, sampling)
        }
        opened { assertEquals(listOf(sampling), it.samplings()) }
    }

    @Test
    fun `a folder is run by one client at a time`() {
        HomeLock(folder).use {
            assertThrows(ConfigError::class.java) { HomeLock(folder) }
        }
        HomeLock(folder).close()
    }

    @Test
    fun `what a withdrawal keeps is the cost, and nothing of when or what`() {
        val consent = "consent" to "granted"
        opened {
            it.put(consent.first, consent.second)
            it.put("coordinator/p", "00")
            it.append(rid, entry("reported"), participation().copy(purpose = "improve typing"), durable = true)
            it.endRound(rid, 3.0, committed = true, detail = "committed")
            it.countExamples(rid, Sampling(1.0, 0.5, 3))
            it.append(Bytes(ByteArray(16)), entry("reported"), participation().copy(rid = Bytes(ByteArray(16))), durable = true)
            it.strip()
            assertEquals(2, it.spending("task").participations)
        }
        opened {
            assertEquals(consent.second, it.get(consent.first))
            assertNull(it.get("coordinator/p"))
            assertEquals(listOf(release to 2L), it.spending("task").releases)
            assertEquals(listOf(0.5, 0.5), it.participations().map { one -> one.epsilon })
            assertEquals(setOf(0.0), it.participations().map { one -> one.at }.toSet())
            assertEquals(listOf(Sampling(1.0, 0.5, 3)), it.samplings())
            assertFalse(it.hasEnded(rid))
            assertNull(it.journalRid)
            assertEquals(emptyList<Receipt>(), PrivacyAccount(it, edge.protocol.DevicePolicy()).receipts())
        }
        val kept = File(folder, "device.log").readText(Charsets.ISO_8859_1)
        for (gone in listOf("improve typing", "committed")) assertFalse(gone in kept)
    }

    @Test
    fun `receipts say what each round cost and how it ended`() {
        opened {
            for ((number, epsilon) in listOf(1 to 0.5, 2 to 0.75)) {
                val id = Bytes(ByteArray(16) { number.toByte() })
                val spent = participation().copy(rid = id, roundNumber = number.toLong(), epsilon = epsilon, purpose = "p")
                it.append(id, entry("reported"), spent, durable = true)
                if (number == 1) it.endRound(id, 3.0, committed = true, detail = "committed")
            }
            val receipts = PrivacyAccount(it, edge.protocol.DevicePolicy()).receipts()
            assertEquals(listOf(0.5, 0.25), receipts.map { one -> one.cost })
            assertEquals(listOf("committed", ""), receipts.map { one -> one.outcome })
            val spent = PrivacyAccount(it, edge.protocol.DevicePolicy()).spent()
            assertEquals(2L to 2, spent.participations to spent.tasks.getValue("task").participations)
            assertTrue(spent.epsilon > 0 && spent.exampleEpsilon == null)
        }
    }

    @Test
    fun `a ledger that has gone is not begun anew`() {
        opened { it.put("a", "b") }
        assertTrue(File(folder, "device.log").delete())
        val error = assertThrows(StoreError::class.java) { DeviceStore(folder) }
        assertTrue("has gone" in error.message.orEmpty())
    }

    @Test
    fun `an owner who said no before anybody asked is not overruled`() {
        opened { Consent(it, { 1.0 }).revoke() }
        opened {
            val consent = Consent(it, { 2.0 })
            assertEquals(false, consent.newest?.granted)
            consent.grant("p", "1")
            assertTrue(consent.granted)
        }
    }
}
