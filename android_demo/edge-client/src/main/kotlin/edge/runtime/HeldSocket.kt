package edge.runtime

import java.io.ByteArrayOutputStream
import java.io.FilterInputStream
import java.io.IOException
import java.io.InputStream
import java.io.OutputStream
import java.net.Socket

/**
 * A socket that sends what it holds when its reader next waits, until it is told to [release] it.
 *
 * A broker that does not want this side's certificate says why and hangs up before it has read the rest of the handshake.
 * Java writes that rest piece by piece, finds the connection reset, and never reads the reason. Sent in one piece it cannot
 * fail on the way, so that the reason is the next thing that is read.
 * Until then one thread uses it.
 */
internal class HeldSocket : Socket() {
    private val held = ByteArrayOutputStream()

    @Volatile private var isHolding = true

    /** Send at once from now on. */
    fun release() {
        send()
        isHolding = false
    }

    override fun getOutputStream(): OutputStream = Writer(super.getOutputStream())

    override fun getInputStream(): InputStream = Reader(super.getInputStream())

    override fun close() {
        try {
            if (isConnected && !isClosed) send()
        } catch (_: IOException) {
            // Nobody is there to read it.
        }
        super.close()
    }

    private fun send() {
        if (!isHolding || held.size() == 0) return
        val flight = held.toByteArray()
        held.reset()
        super.getOutputStream().write(flight)
    }

    private inner class Writer(private val output: OutputStream) : OutputStream() {
        override fun write(byte: Int) = write(byteArrayOf(byte.toByte()), 0, 1)

        override fun write(bytes: ByteArray, from: Int, count: Int) = (if (isHolding) held else output).write(bytes, from, count)
    }

    private inner class Reader(input: InputStream) : FilterInputStream(input) {
        override fun read(): Int {
            send()
            return super.read()
        }

        override fun read(bytes: ByteArray, from: Int, count: Int): Int {
            send()
            return super.read(bytes, from, count)
        }
    }
}
