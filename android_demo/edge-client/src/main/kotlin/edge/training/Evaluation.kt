package edge.training

import ai.onnxruntime.OnnxTensor
import edge.TrainingError

/** A checkpoint's mean loss, share of right labels (null where targets are not class indices), and examples. */
internal class Evaluation private constructor(val loss: Double, val accuracy: Double?, val examples: Int) {
    private class Measured(val loss: Double, val output: Tensor, val targets: Tensor)

    companion object {
        private const val BATCH = 256

        /**
         * Measures a checkpoint on examples by the bundle's evaluation graph: the mean loss over them, or the sum where the
         * model's loss is one.
         *
         * Raises ArtifactError: the runtime cannot load the graph; TrainingError: unusable checkpoint or examples, or a loss
         * that is not finite.
         */
        fun of(artifact: Artifact, checkpoint: FloatArray, examples: Examples): Evaluation {
            val manifest = artifact.manifest
            val labelled = manifest.classes != null && manifest.output.shape.size == 2 && manifest.target.shape.size == 1
            var loss = 0.0
            var count = 0
            var right = 0
            var known = 0
            measure(artifact, checkpoint, examples, minOf(BATCH, manifest.batch.maximum)) { found ->
                val rows = found.targets.shape[0]
                loss += found.loss * if (manifest.lossIsSum) 1 else rows
                count += rows
                if (!labelled) return@measure
                val scores = found.output.floats()
                val labels = found.targets.longs()
                val classes = scores.size / maxOf(1, rows)
                for (row in labels.indices) {
                    if (labels[row] == manifest.ignoredLabel) continue
                    known++
                    val best = (0 until classes).maxByOrNull { scores[row * classes + it] }
                    if (best?.toLong() == labels[row]) right++
                }
            }
            if (!manifest.lossIsSum) loss /= maxOf(count, 1)
            if (loss.isNaN() || loss.isInfinite()) {
                throw TrainingError("the evaluation loss is $loss", "roll back to the last good checkpoint")
            }
            return Evaluation(loss, if (known > 0) right.toDouble() / known else null, count)
        }

        /** Each example's own loss under a checkpoint, in their order; it need not be finite. Raises as [of]. */
        fun exampleLosses(artifact: Artifact, checkpoint: FloatArray, examples: Examples): List<Double> {
            val losses = ArrayList<Double>()
            measure(artifact, checkpoint, examples, 1) { losses.add(it.loss) }
            return losses
        }

        /** Runs the evaluation graph on one batch after the other; examples that went meanwhile are left out. */
        private fun measure(
            artifact: Artifact,
            checkpoint: FloatArray,
            examples: Examples,
            batch: Int,
            each: (Measured) -> Unit,
        ) {
            val target = artifact.manifest.target.name
            OpenGraph(artifact, "evaluate").use { graph ->
                val state = artifact.manifest.layout.unflatten(checkpoint).mapValues { Runtime.tensor(it.value) }
                try {
                    for (places in (0 until examples.count).chunked(batch)) {
                        val rows = ExampleCheck.rows(artifact.manifest, examples.take(places))
                        if (rows.getValue(target).shape[0] > 0) each(measured(graph, state, rows, rows.getValue(target)))
                    }
                } finally {
                    state.values.forEach { it.close() }
                }
            }
        }

        private fun measured(
            graph: OpenGraph,
            state: Map<String, OnnxTensor>,
            rows: Map<String, Tensor>,
            targets: Tensor,
        ): Measured {
            val feeds = rows.mapValues { Runtime.tensor(it.value) }
            try {
                val outputs = graph.run(state + feeds)
                fun role(name: String) =
                    Runtime.values(outputs.getValue(graph.spec.outputs.first { it.role == name }.name))
                return Measured(role("loss").floats().single().toDouble(), role("output"), targets)
                    .also { outputs.values.forEach { it.close() } }
            } finally {
                feeds.values.forEach { it.close() }
            }
        }
    }
}
