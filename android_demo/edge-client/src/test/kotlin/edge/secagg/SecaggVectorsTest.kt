package edge.secagg

import edge.Inputs
import edge.Vectors
import edge.asInt
import edge.asList
import edge.asText
import edge.unhex
import java.math.BigInteger
import org.junit.jupiter.api.DynamicTest
import org.junit.jupiter.api.TestFactory

/** The golden files of secure aggregation, which Python and Kotlin must get bit for bit, failures included. */
class SecaggVectorsTest {
    @TestFactory
    fun suite(): List<DynamicTest> = Vectors.tests("secagg_suite.json", operations)

    private val operations: Map<String, (Inputs) -> Any> = mapOf(
        "digest" to { i -> Suite.digest(*i.list("parts").map { it.asText("part").unhex() }.toTypedArray()) },
        "context" to { i -> Suite.context(i.bytes("rid"), i.bytes("plan_digest"), i.bytes("model_digest")) },
        "derive" to { i -> Suite.derive(i.bytes("entropy"), i.text("name")) },
        "hkdf" to { i -> Suite.hkdf(i.bytes("ikm"), i.bytes("salt"), i.bytes("info"), i.int("length")) },
        "stream" to ::stream,
    )

    private fun stream(i: Inputs): Any {
        val stream = Stream(i.bytes("key"))
        return i.list("reads").map { read ->
            val (method, argument) = read.asList("read")
            when (method.asText("method")) {
                "bytes" -> stream.bytes(argument.asInt("count"))
                "uint16" -> stream.uint16(argument.asInt("count"))
                "uint32" -> stream.uint32(argument.asInt("count")).map { it.toLong() and 0xffffffffL }
                "uint64" -> stream.uint64(argument.asInt("count")).map { BigInteger(java.lang.Long.toUnsignedString(it)) }
                else -> stream.below(BigInteger((argument as edge.JsonNumber).text))
            }
        }
    }
}
