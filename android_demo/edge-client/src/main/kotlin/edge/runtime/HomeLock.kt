package edge.runtime

import edge.ConfigError
import edge.StoreError
import java.io.Closeable
import java.io.File
import java.io.IOException
import java.io.RandomAccessFile
import java.nio.channels.FileLock
import java.nio.channels.OverlappingFileLockException

/** Holds a device's folder for one process: two that run one device would say two things. Raises ConfigError or StoreError. */
internal class HomeLock(home: File) : Closeable {
    private val file: RandomAccessFile
    private val lock: FileLock

    init {
        file = try {
            RandomAccessFile(File(home, "lock"), "rw")
        } catch (error: IOException) {
            throw StoreError("$home cannot be written: ${error.message}", "check the disk and the folder's permissions", error)
        }
        val taken = try {
            file.channel.tryLock()
        } catch (_: OverlappingFileLockException) {
            null
        } catch (error: IOException) {
            file.close()
            throw ConfigError("$home cannot be locked: ${error.message}", "keep it on this machine's own disk", error)
        }
        if (taken == null) {
            file.close()
            throw ConfigError("another process runs the device in $home", "end it first, or use another folder")
        }
        lock = taken
    }

    override fun close() {
        if (lock.isValid) lock.release() // closed twice, nothing happens
        file.close()
    }
}
