package edge.demo

import kotlin.math.PI
import kotlin.math.cos
import kotlin.math.sin

/** Digits as a finger draws them. */
object Shapes {
    /** 0 to 9. */
    val digits: List<Drawing> = listOf(
        Drawing(listOf(arc(0.5, 0.5, 0.22, 0.36, -90.0, 270.0))),
        Drawing(listOf(path(0.4 to 0.3, 0.52 to 0.14, 0.52 to 0.86))),
        Drawing(listOf(arc(0.5, 0.32, 0.2, 0.18, -170.0, 40.0) + path(0.65 to 0.44, 0.32 to 0.84, 0.72 to 0.84))),
        Drawing(listOf(arc(0.48, 0.32, 0.18, 0.18, -150.0, 90.0) + arc(0.48, 0.68, 0.2, 0.18, -90.0, 150.0))),
        Drawing(listOf(path(0.55 to 0.14, 0.3 to 0.6, 0.74 to 0.6), path(0.6 to 0.4, 0.58 to 0.88))),
        Drawing(listOf(path(0.7 to 0.15, 0.38 to 0.15, 0.36 to 0.45) + arc(0.48, 0.64, 0.2, 0.22, -110.0, 140.0))),
        Drawing(listOf(path(0.6 to 0.12, 0.42 to 0.36, 0.34 to 0.62) + arc(0.5, 0.68, 0.16, 0.17, 180.0, 540.0))),
        Drawing(listOf(path(0.3 to 0.16, 0.72 to 0.16, 0.45 to 0.88))),
        Drawing(listOf(arc(0.5, 0.32, 0.16, 0.17, 90.0, 450.0) + arc(0.5, 0.68, 0.19, 0.19, -90.0, 270.0))),
        Drawing(listOf(arc(0.5, 0.34, 0.17, 0.19, 0.0, 360.0) + path(0.67 to 0.34, 0.64 to 0.62, 0.54 to 0.88))),
    )

    private fun path(vararg points: Pair<Double, Double>): List<Point> =
        points.map { (x, y) -> Point(x.toFloat(), y.toFloat()) }

    private fun arc(x: Double, y: Double, width: Double, height: Double, from: Double, to: Double): List<Point> =
        (0..24).map { step ->
            val angle = (from + (to - from) * step / 24) * PI / 180
            Point((x + width * cos(angle)).toFloat(), (y + height * sin(angle)).toFloat())
        }
}
