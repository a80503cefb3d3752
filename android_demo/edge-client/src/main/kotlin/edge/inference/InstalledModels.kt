package edge.inference

import ai.onnxruntime.OnnxTensor
import edge.ArtifactError
import edge.Bytes
import edge.EdgeError
import edge.StoreError
import edge.TrainingError
import edge.fromHex
import edge.secagg.Suite
import edge.toHex
import edge.training.Artifact
import edge.training.ExampleCheck
import edge.training.Layout
import edge.training.OpenGraph
import edge.training.Runtime
import edge.training.Tensor
import java.io.Closeable
import java.io.File
import java.io.IOException
import java.io.RandomAccessFile
import java.security.interfaces.ECPublicKey

/** One installed model: its version, and the SHA-256 of its bundle's head and of its checkpoint. */
public data class InstalledModel(val version: Long, val bundleSha256: Bytes, val checkpointSha256: Bytes)

/** A model ready to predict; close it when it is not needed any more. */
internal class Predictor(artifact: Artifact, checkpoint: FloatArray) : Closeable {
    private val inputs = artifact.manifest.inputs
    private val graph = OpenGraph(artifact, "infer")
    private val state: Map<String, OnnxTensor>

    init {
        val taken = graph.spec.inputs.map { it.name }.toSet()
        state = artifact.manifest.layout.unflatten(checkpoint).filterKeys { it in taken }
            .mapValues { Runtime.tensor(it.value) }
    }

    /** The model's output for a batch of inputs by name; raises TrainingError. */
    fun predict(rows: Map<String, Tensor>): Tensor {
        val checked = ExampleCheck.inputs(inputs, rows)
        if (checked.values.map { it.shape[0] }.toSet().size > 1) {
            throw TrainingError("the inputs have different numbers of rows", "pass a row for each example")
        }
        val feeds = checked.mapValues { Runtime.tensor(it.value) }
        try {
            val outputs = graph.run(state + feeds)
            val output = Runtime.values(outputs.getValue(graph.spec.outputs.first().name))
            outputs.values.forEach { it.close() }
            if (!output.isFinite()) throw TrainingError("the model's output is not finite", "roll back to the last good model")
            return output
        } finally {
            feeds.values.forEach { it.close() }
        }
    }

    /** Zeros of one row each, for a first prediction. */
    fun blank(): Map<String, Tensor> = inputs.associate { spec ->
        spec.name to Tensor.zeros(spec.dtype, listOf(1) + spec.row.map { if (it == 0) 1 else it })
    }

    override fun close() {
        state.values.forEach { it.close() }
        graph.close()
    }
}

/**
 * Installed models in a folder: the newest good one serves, the one before it stays for a roll back.
 *
 * An installation is files first, then one atomic replacement of the file that names them; every load verifies what it
 * reads and falls back to the model before, so that a device that loses power at any point serves a good one. A model that
 * cannot predict is never installed. [signer] is the pinned key that bundles must be signed with, checked at every load.
 */
public class InstalledModels(private val folder: File, private val signer: ECPublicKey) : Closeable {
    private var serving: Pair<InstalledModel, Predictor>? = null

    /**
     * Whether a process ended in the middle of an installation, when this was made: its remains are removed then, and what
     * served before goes on.
     */
    public val wasCutOff: Boolean = tidy()

    /** Serves this model from now on; raises ArtifactError or StoreError, and what served before still does. */
    @Synchronized
    internal fun install(artifact: Artifact, version: Long, checkpoint: FloatArray): InstalledModel {
        val predictor = tried(artifact, checkpoint)
        val data = Layout.encode(checkpoint)
        val model = InstalledModel(version, artifact.sha256, Bytes(Suite.digest(data)))
        val current = readableState().first
        guarded {
            val bundle = bundleFolder(model)
            if (!bundle.isDirectory && !bundle.mkdirs()) throw IOException("$bundle cannot be made")
            File(folder, INSTALLING).writeText(named(model))
            for (name in partNames(artifact)) {
                put(File(bundle, artifact.manifest.part(name).sha256), artifact.part(name))
            }
            put(File(bundle, HEAD), artifact.head)
            put(checkpointFile(model), data)
            if (current != model) writeState(model, current)
            File(folder, INSTALLING).delete()
        }
        serving?.second?.close()
        serving = model to predictor
        removeUnused()
        return model
    }

    /**
     * Serves a bundle's own checkpoint as version 0, such as of a model that an app comes with; where a model is installed,
     * that one stays. Raises ArtifactError or StoreError.
     */
    @Synchronized
    public fun installFirst(bundle: ByteArray) {
        if (current() != null) return
        val artifact = Artifact.parseFile(bundle, signer)
        install(artifact, 0, artifact.checkpoint())
    }

    /** The model that is installed, or null; also where a failing disk spoilt the record of it, see [requireWhole]. */
    public fun current(): InstalledModel? = readableState().first

    /**
     * Sees that what is installed can still be served; [anyInstalled] where something was, as far as the caller remembers.
     *
     * Raises ArtifactError or StoreError: it was damaged, or is gone.
     */
    @Synchronized
    internal fun requireWhole(anyInstalled: Boolean) {
        val current = state().first
        if (current != null) read(current)
        if (current == null && anyInstalled) {
            throw StoreError("the record of models in $folder is gone", "the next model that is installed replaces it")
        }
    }

    /** Serves the model before the current one, which is forgotten; raises ArtifactError where there is none. */
    @Synchronized
    public fun rollBack(): InstalledModel {
        val previous = state().second ?: throw ArtifactError("there is no earlier model to go back to")
        guarded { writeState(previous, null) }
        serving?.second?.close()
        serving = null
        return previous
    }

    /** The model's output for a batch of inputs by name; raises ArtifactError, StoreError or TrainingError. */
    @Synchronized
    public fun predict(rows: Map<String, Tensor>): Tensor = predictor().predict(rows)

    /** Forgets every model. */
    @Synchronized
    public fun erase() {
        close()
        folder.deleteRecursively()
    }

    @Synchronized
    override fun close() {
        serving?.second?.close()
        serving = null
    }

    private fun predictor(): Predictor {
        val (current, previous) = state()
        if (current == null) throw ArtifactError("no model is installed yet", "take part in a task")
        serving?.let { (model, predictor) -> if (model == current) return predictor }
        val loaded = try {
            load(current)
        } catch (error: EdgeError) {
            // Damaged, or not for this runtime any more: the last known good one.
            load(previous ?: throw error)
        }
        serving?.second?.close()
        serving = current to loaded
        return loaded
    }

    private fun load(model: InstalledModel): Predictor {
        val (artifact, data) = read(model)
        return tried(artifact, artifact.manifest.layout.decode(data))
    }

    /** Those parts of a model's bundle that predictions need, and its checkpoint. */
    private fun read(model: InstalledModel): Pair<Artifact, ByteArray> {
        val head = guarded { File(bundleFolder(model), HEAD).readBytes() }
        val data = guarded { checkpointFile(model).readBytes() }
        if (!Suite.digest(data).contentEquals(model.checkpointSha256.array)) {
            throw ArtifactError("the installed checkpoint of version ${model.version} was damaged", "install it anew")
        }
        val artifact = Artifact.parseHead(head, signer)
        val parts = partNames(artifact).map { name ->
            guarded { File(bundleFolder(model), artifact.manifest.part(name).sha256).readBytes() }
        }
        return artifact.withParts(parts) to data
    }

    /** A predictor that has predicted: zeros in, finite values out. */
    private fun tried(artifact: Artifact, checkpoint: FloatArray): Predictor {
        val predictor = Predictor(artifact, checkpoint)
        try {
            predictor.predict(predictor.blank())
        } catch (error: TrainingError) {
            predictor.close()
            throw ArtifactError("the model cannot predict: ${error.message}", "the last good model keeps serving", error)
        }
        return predictor
    }

    private fun partNames(artifact: Artifact) =
        listOf(artifact.manifest.graph("infer").part) + artifact.manifest.frozenParts

    /** The same as [state], for whoever can do without: nothing where a failing disk spoilt it. */
    private fun readableState(): Pair<InstalledModel?, InstalledModel?> = try {
        state()
    } catch (_: StoreError) {
        null to null
    }

    /** The current model and the one before it: a line each, the version and the two hashes. */
    private fun state(): Pair<InstalledModel?, InstalledModel?> {
        val file = File(folder, STATE)
        if (!file.isFile) return null to null
        val lines = guarded { file.readLines() }
        val models = lines.map { line ->
            val words = line.split(' ')
            val version = words[0].toLongOrNull()
            val hashes = words.drop(1).mapNotNull { it.fromHex()?.let(::Bytes) }
            if (version == null || hashes.size != 2) throw StoreError("$file cannot be read", "the next model that is installed replaces it")
            InstalledModel(version, hashes[0], hashes[1])
        }
        if (models.isEmpty()) throw StoreError("$file cannot be read", "the next model that is installed replaces it")
        return models[0] to models.getOrNull(1)
    }

    private fun writeState(vararg models: InstalledModel?) {
        replace(File(folder, STATE), models.filterNotNull().joinToString("", transform = ::named).toByteArray())
    }

    private fun named(model: InstalledModel) = "${model.version} ${model.bundleSha256.hex()} ${model.checkpointSha256.hex()}\n"

    /** Removes what an installation left that was cut off; whether there was one that did not come to its end. */
    private fun tidy(): Boolean {
        val mark = File(folder, INSTALLING)
        if (!mark.isFile) return false
        // A state that cannot be read is told by whoever needs it.
        val current = try {
            state().first
        } catch (_: StoreError) {
            null
        }
        val ended = current != null && guarded { mark.readText() } == named(current)
        if (current != null) removeUnused()
        mark.delete()
        return !ended
    }

    private fun put(file: File, data: ByteArray) {
        // Files are named by their content; one that was damaged is written again.
        if (!file.isFile || !file.readBytes().contentEquals(data)) replace(file, data)
    }

    private fun replace(file: File, data: ByteArray) {
        val part = File(file.path + ".part")
        RandomAccessFile(part, "rw").use {
            it.setLength(0)
            it.write(data)
            it.fd.sync()
        }
        if (!part.renameTo(file)) throw IOException("$part cannot be renamed")
    }

    private fun removeUnused() {
        val (current, previous) = state()
        val kept = listOfNotNull(current, previous).flatMap { listOf(bundleFolder(it).name, checkpointFile(it).name) } + STATE
        folder.listFiles()?.forEach { if (it.name !in kept) it.deleteRecursively() }
    }

    private fun bundleFolder(model: InstalledModel) = File(folder, model.bundleSha256.array.toHex())

    private fun checkpointFile(model: InstalledModel) = File(folder, "${model.checkpointSha256.hex()}.checkpoint")

    private inline fun <T> guarded(action: () -> T): T = try {
        action()
    } catch (error: IOException) {
        throw StoreError("cannot use the models in $folder: ${error.message}", "check the disk's free space", error)
    }

    private companion object {
        const val STATE = "installed"

        /** Names the model that is being installed, while it is. */
        const val INSTALLING = "installing"
        const val HEAD = "head"
    }
}
