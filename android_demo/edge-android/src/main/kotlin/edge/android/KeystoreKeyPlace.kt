package edge.android

import edge.training.KeyPlace
import java.io.File
import javax.crypto.SecretKey

/**
 * Keeps a key in a file that is sealed with another: on a phone one of the Keystore's, so that the file alone opens nothing.
 *
 * @param wrapping see [KeystoreKeys.storageKey].
 */
public class KeystoreKeyPlace(file: File, wrapping: () -> SecretKey) : KeyPlace {
    private val files = SealedFiles(file.absoluteFile.parentFile, wrapping)
    private val name = file.name

    override fun load(): ByteArray? = files.read(name)

    override fun save(key: ByteArray): Unit = files.write(name, key)

    override fun erase(): Unit = files.delete(name)
}
