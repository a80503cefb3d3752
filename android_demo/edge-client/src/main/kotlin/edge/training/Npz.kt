package edge.training

import edge.ConfigError
import java.io.File
import java.io.IOException
import java.util.zip.ZipInputStream

/** NumPy's archives of arrays (.npz), as far as examples need them: little-endian numbers in C order. */
internal object Npz {
    private val HEADER = Regex("'descr': '([<|])([a-z][0-9])', 'fortran_order': False, 'shape': \\(([0-9, ]*)\\)")
    private val DTYPES = mapOf(
        "f4" to Dtype.FLOAT32, "f8" to Dtype.FLOAT64, "i8" to Dtype.INT64, "i4" to Dtype.INT32, "i2" to Dtype.INT16,
        "i1" to Dtype.INT8, "u1" to Dtype.UINT8, "b1" to Dtype.BOOL,
    )

    /** The arrays of a file by name; raises ConfigError where it cannot be read. */
    fun read(file: File): Map<String, Tensor> = try {
        val arrays = LinkedHashMap<String, Tensor>()
        ZipInputStream(file.inputStream().buffered()).use { archive ->
            while (true) {
                val entry = archive.nextEntry ?: break
                arrays[entry.name.removeSuffix(".npy")] = array(archive.readBytes(), "${entry.name} of $file")
            }
        }
        if (arrays.isEmpty()) throw unusable("$file", "it is no .npz")
        arrays
    } catch (error: IOException) {
        throw ConfigError("cannot read $file: ${error.message}", "pass an .npz that numpy.savez wrote", error)
    }

    private fun array(content: ByteArray, what: String): Tensor {
        val isArray = content.size > 10 && content[0] == 0x93.toByte() && String(content, 1, 5, Charsets.US_ASCII) == "NUMPY"
        if (!isArray || content[6].toInt() != 1) throw unusable(what, "it is no array of NumPy's format 1")
        val start = 10 + (content[8].toInt() and 0xff) + 256 * (content[9].toInt() and 0xff)
        val header = String(content, 10, minOf(start, content.size) - 10, Charsets.US_ASCII)
        val (_, code, dimensions) = HEADER.find(header)?.destructured ?: throw unusable(what, header)
        val dtype = DTYPES[code] ?: throw unusable(what, "its numbers are $code")
        val shape = dimensions.split(',').map { it.trim() }.filter { it.isNotEmpty() }.map { it.toInt() }
        return Tensor(dtype, shape, content.copyOfRange(start, content.size))
    }

    private fun unusable(what: String, why: String) = ConfigError("$what cannot be used: $why", "save it with numpy.savez")
}
