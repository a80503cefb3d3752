package edge.android

import edge.StoreError
import java.io.File
import java.io.FileOutputStream
import java.io.IOException
import java.security.GeneralSecurityException
import javax.crypto.AEADBadTagException
import javax.crypto.Cipher
import javax.crypto.SecretKey
import javax.crypto.spec.GCMParameterSpec

/**
 * Files that only this app on this phone can read: AES-256-GCM under a key that is in no file.
 *
 * A file is `EDGS`, a version byte, 12 bytes of nonce, then ciphertext and 16 bytes of tag. The name is authenticated, so
 * that a file cannot take another one's place. Writing is atomic: a phone that dies keeps the content from before.
 *
 * @param folder where they are, made where missing; on a phone a folder inside `noBackupFilesDir`.
 * @param key on a phone one of the Keystore's, see [KeystoreKeys]; asked for each time, since it may be erased and made anew.
 */
public class SealedFiles(private val folder: File, private val key: () -> SecretKey) {
    /** Write a file whole. @throws StoreError there is no room, or the key is gone. */
    public fun write(name: String, content: ByteArray) {
        val file = file(name)
        try {
            if (!folder.isDirectory && !folder.mkdirs()) throw IOException("cannot make $folder")
            val cipher = Cipher.getInstance(CIPHER)
            // The cipher draws the nonce: the Keystore takes none from outside.
            cipher.init(Cipher.ENCRYPT_MODE, key())
            cipher.updateAAD(name.toByteArray())
            val sealed = MAGIC + cipher.iv + cipher.doFinal(content)
            val part = File(folder, name + PART)
            FileOutputStream(part).use {
                it.write(sealed)
                it.fd.sync()
            }
            if (!part.renameTo(file)) throw IOException("cannot replace $file")
        } catch (error: IOException) {
            throw StoreError("cannot write $name: ${error.message}", "free some storage on this phone", error)
        } catch (error: GeneralSecurityException) {
            throw StoreError("cannot seal $name: $error", KEY_LOST, error)
        }
    }

    /** A file's content; null where there is none. @throws StoreError it was changed, or the key is gone. */
    public fun read(name: String): ByteArray? {
        val file = file(name)
        if (!file.exists()) return null
        try {
            val sealed = file.readBytes()
            val start = MAGIC.size + NONCE_BYTES
            if (sealed.size < start + TAG_BYTES || !sealed.copyOf(MAGIC.size).contentEquals(MAGIC)) {
                throw StoreError("$name is no sealed file", "erase this app's data: the file was damaged")
            }
            val cipher = Cipher.getInstance(CIPHER)
            cipher.init(Cipher.DECRYPT_MODE, key(), GCMParameterSpec(TAG_BYTES * 8, sealed, MAGIC.size, NONCE_BYTES))
            cipher.updateAAD(name.toByteArray())
            return cipher.doFinal(sealed, start, sealed.size - start)
        } catch (error: StoreError) {
            throw error
        } catch (error: AEADBadTagException) {
            throw StoreError("$name was changed, or sealed with another key", KEY_LOST, error)
        } catch (error: IOException) {
            throw StoreError("cannot read $name: ${error.message}", "try again; the file is still there", error)
        } catch (error: GeneralSecurityException) {
            throw StoreError("cannot open $name: $error", KEY_LOST, error)
        }
    }

    /** The names of what is stored, sorted. */
    public fun names(): List<String> =
        folder.list().orEmpty().filter { !it.endsWith(PART) }.sorted()

    /** Bytes on disk. */
    public fun sizeBytes(): Long = folder.listFiles().orEmpty().sumOf { it.length() }

    /** Remove a file, if it is there. @throws StoreError it cannot be removed. */
    public fun delete(name: String) {
        val file = file(name)
        if (file.exists() && !file.delete()) throw StoreError("cannot remove $name", "clear this app's storage")
    }

    /** Remove all files. Delete the key too: without it, what flash memory may still hold is noise. */
    public fun clear() {
        for (file in folder.listFiles().orEmpty()) delete(file.name)
    }

    private fun file(name: String): File {
        require(NAME.matches(name)) { "a sealed file cannot be called '$name': use letters, digits, '-', '_' and '.'" }
        return File(folder, name)
    }

    private companion object {
        const val CIPHER = "AES/GCM/NoPadding"
        const val NONCE_BYTES = 12
        const val TAG_BYTES = 16
        const val PART = ".part"
        const val KEY_LOST = "erase this app's data and enrol again: its key was removed, or the file comes from elsewhere"
        val MAGIC = "EDGS".toByteArray() + 1
        val NAME = Regex("[A-Za-z0-9_-][A-Za-z0-9._-]{0,99}")
    }
}
