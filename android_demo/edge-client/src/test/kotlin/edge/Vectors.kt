package edge

import java.io.File
import java.math.BigInteger
import org.junit.jupiter.api.Assertions.assertEquals
import org.junit.jupiter.api.DynamicTest

/** The golden files in tests/vectors: operations, their inputs, and what they give or how they fail. */
internal object Vectors {
    val repository: File = File(System.getProperty("edge.repository")).canonicalFile

    /** One test for each case of a file. Every operation in the file must be known: a new one fails here. */
    fun tests(name: String, operations: Map<String, (Inputs) -> Any>): List<DynamicTest> {
        val cases = parseJson(File(repository, "tests/vectors/$name").readText()).asObject(name).getValue("cases")
        return cases.asList("cases").mapIndexed { position, case ->
            val fields = case.asObject("case")
            val operation = fields.getValue("op").asText("op")
            DynamicTest.dynamicTest("$name $position $operation") {
                val run = operations[operation] ?: throw AssertionError("no operation $operation in Kotlin")
                val found = try {
                    "out" to run(Inputs(fields.getValue("in").asObject("in")))
                } catch (error: EdgeError) {
                    "error" to error.javaClass.simpleName
                }
                val expected = fields["out"] ?: fields.getValue("error")
                assertSame(if ("out" in fields) "out" else "error", expected, found)
            }
        }
    }

    private fun assertSame(key: String, expected: Json, found: Pair<String, Any>) {
        assertEquals(key, found.first) { "expected $expected, found ${found.second}" }
        assertEquals(plain(expected), canonical(found.second))
    }

    /** Numbers by value: 1 and 1.0 are the same. */
    private fun plain(value: Json): Any? = when (value) {
        is JsonObject -> value.fields.mapValues { plain(it.value) }
        is JsonArray -> value.items.map(::plain)
        is JsonText -> value.value
        is JsonNumber -> if (value.text.all { it.isDigit() || it == '-' }) number(BigInteger(value.text)) else value.text.toDouble()
        is JsonBoolean -> value.value
        JsonNull -> null
    }

    /** What an operation returned, in the same terms. */
    private fun canonical(value: Any?): Any? = when (value) {
        is ByteArray -> value.hex()
        is IntArray -> value.map { number(BigInteger.valueOf(it.toLong())) }
        is LongArray -> value.map { number(BigInteger.valueOf(it)) }
        is FloatArray -> value.map { canonical(it) }
        is List<*> -> value.map(::canonical)
        is Map<*, *> -> value.entries.associate { it.key.toString() to canonical(it.value) }
        is Int -> number(BigInteger.valueOf(value.toLong()))
        is Long -> number(BigInteger.valueOf(value))
        is BigInteger -> number(value)
        is Float -> canonical(value.toDouble())
        is Double -> if (value == Math.rint(value)) number(value.toBigDecimal().toBigInteger()) else value
        else -> value
    }

    private fun number(value: BigInteger): Any = value
}

/** The inputs of one case, by name. */
internal class Inputs(private val fields: Map<String, Json>) {
    operator fun get(name: String): Json = fields[name] ?: throw AssertionError("the case lacks $name")

    operator fun contains(name: String): Boolean = name in fields

    fun bytes(name: String): ByteArray = text(name).unhex()

    fun text(name: String): String = get(name).asText(name)

    fun int(name: String): Int = get(name).asInt(name)

    fun double(name: String): Double = get(name).asDouble(name)

    fun boolean(name: String): Boolean = get(name).asBoolean(name)

    fun list(name: String): List<Json> = get(name).asList(name)

    fun ints(name: String): List<Int> = list(name).map { it.asInt(name) }

    fun inputs(name: String): Inputs = Inputs(get(name).asObject(name))
}

internal fun ByteArray.hex(): String = joinToString("") { "%02x".format(it) }

internal fun String.unhex(): ByteArray = chunked(2).map { it.toInt(16).toByte() }.toByteArray()

/** Bytes that look random, named by a label; as the Python script of the vectors makes them. */
internal fun octets(name: String, count: Int): ByteArray =
    edge.secagg.Stream(edge.secagg.Suite.digest(name.toByteArray())).bytes(count)
