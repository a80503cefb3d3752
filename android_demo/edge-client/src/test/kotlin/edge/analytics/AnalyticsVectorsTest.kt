package edge.analytics

import edge.Inputs
import edge.JsonBoolean
import edge.Signing
import edge.Vectors
import edge.asInt
import edge.asList
import edge.asObject
import edge.asDouble
import edge.training.Dtype
import edge.training.Field
import edge.training.Tensor
import java.nio.ByteBuffer
import java.nio.ByteOrder
import org.junit.jupiter.api.DynamicTest
import org.junit.jupiter.api.TestFactory

/** Queries and answers, as Python reads and gives them. */
class AnalyticsVectorsTest {
    @TestFactory
    fun analytics(): List<DynamicTest> = Vectors.tests(
        "analytics.json",
        mapOf(
            "read" to { i -> told(Query.read(i.bytes("content"), Signing.publicKeyFromPem(i.text("signer")))) },
            "answer" to ::answer,
            "answer_evaluation" to { i ->
                val right = if (i["right"] == edge.JsonNull) null else i.double("right")
                Answer.ofEvaluation(query(i), i.double("loss"), right, i.int("count"))
            },
        ),
    )

    private fun told(query: Query): Map<String, Any> = mapOf(
        "kind" to query.kind,
        "field" to query.field,
        "low" to query.low,
        "high" to query.high,
        "bins" to query.bins,
        "components" to query.components,
        "max_rows" to query.maxRows,
        "model" to query.model.map { listOf(it.sha256.hex(), it.sizeBytes) },
        "dimension" to query.dimension,
        "norm_bound" to query.normBound,
    )

    private fun query(i: Inputs): Query = i.inputs("query").run {
        fun number(name: String, usual: Double) = if (name in this) double(name) else usual
        Query(
            kind = text("kind"),
            field = if ("field" in this) text("field") else "",
            low = number("low", 0.0),
            high = number("high", 1.0),
            bins = number("bins", 1.0).toInt(),
            components = number("components", 1.0).toInt(),
            maxRows = number("max_rows", 100.0).toInt(),
            model = emptyList(),
        )
    }

    private fun answer(i: Inputs): FloatArray {
        val rows = i["rows"].asObject("rows").mapValues { (_, field) -> tensor(Inputs(field.asObject("field"))) }
        Answer.check(query(i), rows.mapValues { (_, all) -> Field(all.dtype, all.shape.drop(1)) })
        return Answer.of(query(i), rows)
    }

    private fun tensor(field: Inputs): Tensor {
        val dtype = Dtype.values().first { it.title == field.text("dtype") }
        val values = field["values"].asList("values").map { if (it is JsonBoolean) (if (it.value) 1.0 else 0.0) else it.asDouble("value") }
        val data = ByteBuffer.allocate(dtype.bytes * values.size).order(ByteOrder.LITTLE_ENDIAN)
        for (value in values) {
            when (dtype) {
                Dtype.FLOAT32 -> data.putFloat(value.toFloat())
                Dtype.INT64 -> data.putLong(value.toLong())
                else -> data.put(value.toInt().toByte())
            }
        }
        return Tensor(dtype, field["shape"].asList("shape").map { it.asInt("dimension") }, data.array())
    }
}
