package edge

import edge.training.Artifact
import edge.training.Layout
import edge.training.Npz
import edge.training.OnnxTrainer
import edge.training.TrainingPlan
import java.io.File

/**
 * Training of the Python tests, in a JVM, without a round:
 *
 *     java edge.TestTrainingKt BUNDLE SIGNER EXAMPLES SEED EPOCHS BATCH RATE STEPS PROXIMAL OUT
 *
 * Prints the largest error of the parity vector as a share of what is allowed, and writes the update to OUT.
 */
fun main(arguments: Array<String>) {
    val (bundle, signer, examples, seed, epochs) = arguments
    val (batch, rate, steps, proximal, out) = arguments.drop(5)
    try {
        val artifact = Artifact.parseFile(File(bundle).readBytes(), Signing.publicKeyFromPem(File(signer).readText()))
        val inMemory = InMemory(Npz.read(File(examples)))
        val plan = TrainingPlan(epochs.toLong(), batch.toInt(), rate.toFloat(), steps.toLong(), proximal.toFloat())
        // Random bytes that are anything but secret, as Python's tests make them.
        var drawn = 0
        val known = { count: Int ->
            val shake = org.bouncycastle.crypto.digests.SHAKEDigest(256)
            edge.secagg.Suite.u32(drawn++).let { shake.update(it, 0, it.size) }
            ByteArray(count).also { shake.doFinal(it, 0, count) }
        }
        OnnxTrainer(artifact, known).use { trainer ->
            println("parity ${trainer.replayParity()}")
            val result = trainer.train(artifact.checkpoint(), inMemory, plan, seed.toByteArray())
            File(out).writeBytes(Layout.encode(result.update))
            println("trained ${result.steps} steps, loss ${result.loss}")
        }
    } catch (error: EdgeError) {
        println("${error.javaClass.simpleName}: ${error.message}")
    }
}
