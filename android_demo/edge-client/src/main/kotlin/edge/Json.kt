package edge

/** A JSON value (RFC 8259), as manifests and vectors hold them. */
internal sealed interface Json

internal data class JsonObject(val fields: Map<String, Json>) : Json

internal data class JsonArray(val items: List<Json>) : Json

internal data class JsonText(val value: String) : Json

/** A number as it was written, so that nothing is lost before the reader says what it should be. */
internal data class JsonNumber(val text: String) : Json

internal data class JsonBoolean(val value: Boolean) : Json

internal object JsonNull : Json

/** Text that is not JSON, or not of the shape that its reader asked for. */
internal class JsonError(message: String) : Exception(message)

/** Reads one JSON value: strict, no duplicate names, nested at most 64 deep; raises [JsonError]. */
internal fun parseJson(text: String): Json {
    val reader = JsonReader(text)
    val value = reader.value(0)
    reader.end()
    return value
}

private class JsonReader(private val text: String) {
    private var at = 0

    fun end() {
        skipSpace()
        if (at < text.length) fail("text after the value")
    }

    fun value(depth: Int): Json {
        if (depth > 64) fail("nested too deep")
        skipSpace()
        return when (peek()) {
            '{' -> JsonObject(fields(depth))
            '[' -> JsonArray(items(depth))
            '"' -> JsonText(string())
            't' -> word("true", JsonBoolean(true))
            'f' -> word("false", JsonBoolean(false))
            'n' -> word("null", JsonNull)
            else -> number()
        }
    }

    private fun fields(depth: Int): Map<String, Json> {
        val found = LinkedHashMap<String, Json>()
        at++
        if (next('}')) return found
        do {
            skipSpace()
            val name = string()
            if (!next(':')) fail("a colon is missing")
            if (found.put(name, value(depth + 1)) != null) fail("the name \"$name\" stands twice")
        } while (next(','))
        if (!next('}')) fail("a closing brace is missing")
        return found
    }

    private fun items(depth: Int): List<Json> {
        val found = ArrayList<Json>()
        at++
        if (next(']')) return found
        do found.add(value(depth + 1)) while (next(','))
        if (!next(']')) fail("a closing bracket is missing")
        return found
    }

    private fun string(): String {
        if (peek() != '"') fail("a string is missing")
        at++
        val found = StringBuilder()
        while (true) {
            val c = peek()
            at++
            when {
                c == '"' -> return found.toString()
                c == '\\' -> found.append(escaped())
                c < ' ' -> fail("a control character in a string")
                else -> found.append(c)
            }
        }
    }

    private fun escaped(): Char {
        val c = peek()
        at++
        return when (c) {
            '"', '\\', '/' -> c
            'b' -> '\b'
            'f' -> '\u000c'
            'n' -> '\n'
            'r' -> '\r'
            't' -> '\t'
            'u' -> {
                val digits = text.substring(at, minOf(at + 4, text.length))
                if (digits.length < 4 || digits.any { it.digitToIntOrNull(16) == null }) fail("a bad escape")
                at += 4
                digits.toInt(16).toChar()
            }
            else -> fail("a bad escape")
        }
    }

    private fun number(): JsonNumber {
        val match = NUMBER.find(text, at)
        if (match == null || match.range.first != at) fail("a value is missing")
        at = match.range.last + 1
        return JsonNumber(match.value)
    }

    private fun word(word: String, value: Json): Json {
        if (!text.startsWith(word, at)) fail("a value is missing")
        at += word.length
        return value
    }

    private fun next(c: Char): Boolean {
        skipSpace()
        if (at >= text.length || text[at] != c) return false
        at++
        return true
    }

    private fun peek(): Char = if (at < text.length) text[at] else fail("it ends too early")

    private fun skipSpace() {
        while (at < text.length && text[at] in " \t\n\r") at++
    }

    private fun fail(what: String): Nothing = throw JsonError("not JSON: $what at character $at")

    private companion object {
        val NUMBER = Regex("-?(0|[1-9][0-9]*)(\\.[0-9]+)?([eE][+-]?[0-9]+)?")
    }
}

/** The object that a value is; [what] names it in errors, here and below. */
internal fun Json.asObject(what: String): Map<String, Json> =
    (this as? JsonObject)?.fields ?: throw JsonError("$what is no object")

internal fun Json.asList(what: String): List<Json> =
    (this as? JsonArray)?.items ?: throw JsonError("$what is no list")

internal fun Json.asText(what: String): String = (this as? JsonText)?.value ?: throw JsonError("$what is no text")

internal fun Json.asBoolean(what: String): Boolean =
    (this as? JsonBoolean)?.value ?: throw JsonError("$what is neither true nor false")

internal fun Json.asLong(what: String): Long =
    (this as? JsonNumber)?.text?.toLongOrNull() ?: throw JsonError("$what is no whole number")

internal fun Json.asInt(what: String): Int {
    val value = asLong(what)
    if (value != value.toInt().toLong()) throw JsonError("$what is out of range: $value")
    return value.toInt()
}

internal fun Json.asDouble(what: String): Double =
    (this as? JsonNumber)?.text?.toDouble() ?: throw JsonError("$what is no number")
