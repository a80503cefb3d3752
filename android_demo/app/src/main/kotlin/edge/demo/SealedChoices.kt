package edge.demo

import edge.android.SealedFiles

/** The choices, in one sealed file each. */
class SealedChoices(private val files: SealedFiles) : Choices {
    override var consenting: Boolean
        get() = files.read(CONSENTING) != null
        set(value) = if (value) files.write(CONSENTING, ByteArray(0)) else files.delete(CONSENTING)

    override var invitation: String?
        get() = files.read(INVITATION)?.toString(Charsets.UTF_8)
        set(value) = if (value == null) files.delete(INVITATION) else files.write(INVITATION, value.toByteArray())

    private companion object {
        const val CONSENTING = "consenting"
        const val INVITATION = "invitation"
    }
}
