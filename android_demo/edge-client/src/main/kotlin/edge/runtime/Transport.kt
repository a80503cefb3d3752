package edge.runtime

/** What a device sends through, and hears from. */
public interface Transport {
    /**
     * Begins to connect, subscribes to [subscriptions], and keeps at it until [stop].
     *
     * [onMessage] is called for each message and [onConnected] whenever the subscriptions stand, on a thread of the
     * transport's own.
     */
    public fun launch(subscriptions: List<String>, onMessage: (String, ByteArray) -> Unit, onConnected: () -> Unit)

    /** Sends without waiting; false where it was dropped. The agent repeats what matters. */
    public fun publish(topic: String, payload: ByteArray, expiryS: Int): Boolean

    /** Says goodbye. */
    public fun stop()
}
