package edge

import edge.secagg.NotRebuilt
import java.io.File
import java.math.BigInteger
import org.junit.jupiter.api.Assertions.assertEquals
import org.junit.jupiter.api.DynamicTest

/** The golden files in tests/vectors: operations, their inputs, and what they give or how they fail. */
internal object Vectors {
    val repository: File = File(System.getProperty("edge.repository")).canonicalFile

    /** One test for each case of a file. Every operation in the file must be known: a new one fails here. */
    fun tests(name: String, operations: Map<String, (Inputs) -> Any>, relative: Double = 0.0): List<DynamicTest> {
        val cases = parseJson(File(repository, "tests/vectors/$name").readText()).asObject(name).getValue("cases")
        return cases.asList("cases").mapIndexed { position, case ->
            val fields = case.asObject("case")
            val operation = fields.getValue("op").asText("op")
            DynamicTest.dynamicTest("$name $position $operation") {
                val run = operations[operation] ?: throw AssertionError("no operation $operation in Kotlin")
                val found = try {
                    "out" to run(Inputs(fields.getValue("in").asObject("in"), fields["out"]))
                } catch (error: EdgeError) {
                    "error" to error.javaClass.simpleName
                } catch (error: NotRebuilt) {
                    "error" to error.javaClass.simpleName
                }
                val expected = fields["out"] ?: fields.getValue("error")
                assertSame(if ("out" in fields) "out" else "error", expected, found, relative)
            }
        }
    }

    /** What the case says that it gives: for operations that may give other bytes of the same meaning. */
    fun outOf(inputs: Inputs): ByteArray = (inputs.out ?: throw AssertionError("the case must fail")).asText("out").unhex()

    private fun assertSame(key: String, expected: Json, found: Pair<String, Any>, relative: Double) {
        assertEquals(key, found.first) { "expected $expected, found ${found.second}" }
        val value = found.second
        if (relative > 0 && key == "out" && value is Double) {
            val wanted = expected.asDouble("out")
            assertEquals(wanted, value, relative * wanted)
        } else {
            assertEquals(plain(expected), canonical(value))
        }
    }

    /** Numbers by value: 1 and 1.0 are the same. */
    private fun plain(value: Json): Any? = when (value) {
        is JsonObject -> value.fields.mapValues { plain(it.value) }
        is JsonArray -> value.items.map(::plain)
        is JsonText -> value.value
        is JsonNumber -> value.text.toBigIntegerOrNull() ?: canonical(value.text.toDouble())
        is JsonBoolean -> value.value
        JsonNull -> null
    }

    /** What an operation returned, in the same terms. */
    private fun canonical(value: Any?): Any? = when (value) {
        is ByteArray -> value.hex()
        is IntArray -> value.map { BigInteger.valueOf(it.toLong()) }
        is LongArray -> value.map { BigInteger.valueOf(it) }
        is FloatArray -> value.map { canonical(it) }
        is List<*> -> value.map(::canonical)
        is Map<*, *> -> value.entries.associate { it.key.toString() to canonical(it.value) }
        is Int -> BigInteger.valueOf(value.toLong())
        is Long -> BigInteger.valueOf(value)
        is Float -> canonical(value.toDouble())
        is Double -> if (value == Math.rint(value) && !value.isInfinite()) value.toBigDecimal().toBigInteger() else value
        else -> value
    }
}

/** The inputs of one case, by name. */
internal class Inputs(private val fields: Map<String, Json>, val out: Json? = null) {
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
