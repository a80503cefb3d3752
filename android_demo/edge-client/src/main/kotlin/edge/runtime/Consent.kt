package edge.runtime

import edge.ConfigError
import edge.StoreError
import java.util.Base64

/**
 * Consent was granted or revoked: for which [purpose], in the words that the owner was shown, after which [textVersion] of
 * the text, and when ([at], seconds since the epoch).
 */
public data class ConsentChange(val granted: Boolean, val purpose: String, val textVersion: String, val at: Double)

/**
 * Whether the device's owner agreed to training: off until granted, kept over restarts, with every change on record.
 *
 * Knows no round. [store] keeps it; [now] dates each change; [changed] is called after each.
 */
public class Consent(
    private val store: DeviceStore,
    private val now: () -> Double,
    private val changed: () -> Unit = {},
) {
    @Volatile private var revoked = false // also where that could not be written down

    /** Whether training is allowed now. */
    public val granted: Boolean get() = !revoked && newest?.granted == true

    /** The newest change; null where nobody was ever asked. */
    public val newest: ConsentChange? get() = history().lastOrNull()

    /** All changes, oldest first; of very many the newest hundred. Raises StoreError where they cannot be read. */
    public fun history(): List<ConsentChange> {
        val text = store.get(KEY) ?: return emptyList()
        try {
            return text.lines().map { line ->
                val (granted, at, purpose, version) = line.split(' ')
                ConsentChange(granted == GRANTED, plain(purpose), plain(version), at.toDouble())
            }
        } catch (error: IllegalArgumentException) {
            throw unreadable(error)
        } catch (error: IndexOutOfBoundsException) {
            throw unreadable(error)
        }
    }

    /** Records that the owner agreed: training is on from now on. Raises ConfigError where a text is empty. */
    public fun grant(purpose: String, textVersion: String) {
        if (purpose.isBlank() || textVersion.isBlank()) {
            throw ConfigError(
                "consent without a purpose or without the version of its text proves nothing",
                "say what the owner agreed to: grant(purpose = \"improve typing\", textVersion = \"3\")",
            )
        }
        add(ConsentChange(true, purpose, textVersion, now()))
    }

    /**
     * Records that the owner no longer agrees: the device leaves its open round and joins no other.
     *
     * What was uploaded before is in sums of many devices and cannot be taken out. Raises StoreError: it cannot be
     * written; until this process ends it holds all the same.
     */
    public fun revoke() {
        revoked = true
        try {
            val last = newest
            // Kept too where nobody was asked: what an app grants at its first start must not overrule its owner.
            if (last == null || last.granted) add(ConsentChange(false, last?.purpose.orEmpty(), last?.textVersion.orEmpty(), now()))
        } catch (error: StoreError) {
            changed()
            throw error
        }
    }

    private fun add(change: ConsentChange) {
        val text = (history() + change).takeLast(HISTORY_MAX).joinToString("\n") {
            "${if (it.granted) GRANTED else "revoked"} ${it.at} ${coded(it.purpose)} ${coded(it.textVersion)}"
        }
        store.put(KEY, text, durable = true)
        revoked = !change.granted
        changed()
    }

    private fun coded(text: String): String = Base64.getEncoder().encodeToString(text.toByteArray())

    private fun plain(text: String): String = Base64.getDecoder().decode(text).toString(Charsets.UTF_8)

    private fun unreadable(error: RuntimeException) =
        StoreError("the record of consent cannot be read", "training stays off; ask the owner again in a new store", error)

    private companion object {
        const val KEY = "consent"
        const val GRANTED = "granted"
        const val HISTORY_MAX = 100
    }
}
