package edge.runtime

import edge.Bytes
import edge.EdgeError
import edge.Identity
import edge.IdentityError
import edge.LocalProtocolError
import edge.RemoteProtocolError
import edge.Role
import edge.Signing
import edge.protocol.Announcement
import edge.protocol.Codec
import edge.protocol.Frame
import edge.protocol.Limits
import edge.protocol.ToCoordinator

/** One message for the broker. */
public class Outgoing internal constructor(
    public val topic: String,
    public val payload: ByteArray,
    public val expiryS: Int,
)

/**
 * A device's signed frames: writes its own to [topic], and tells whose the others are. Knows no round.
 *
 * What a coordinator or another device signed is checked against certificates under the pinned registrar.
 */
internal class Frames(val identity: Identity, private val topic: String) {
    /** A signed control frame to the coordinator, with the device's certificate if [certified]. */
    fun write(message: ToCoordinator, certified: Boolean): Outgoing {
        val certificate = if (certified) identity.certificate else Bytes.EMPTY
        val frame = Codec.writeFrame(message, identity.id, certificate, identity::sign)
        if (frame.size > Limits.CONTROL_FRAME_MAX_BYTES) {
            throw LocalProtocolError("a message of ${frame.size} bytes does not fit a control frame")
        }
        return Outgoing(topic, frame, Limits.EXPIRY_CONTROL_UP_S)
    }

    /**
     * An announcement of any coordinator's, and that one's certificate.
     *
     * Raises RemoteProtocolError or IdentityError: it is none, or not authentic.
     */
    fun announcement(payload: ByteArray, now: Double): Pair<Announcement, Bytes> {
        val frame = Codec.readFrame(payload)
        val peer = identity.registrar.verify(frame.certificate, Role.COORDINATOR, now)
        if (!Signing.verifyRaw(peer.publicKey, frame.signature, frame.signedFor(Codec.BROADCAST))) {
            throw RemoteProtocolError("an announcement whose signature is not the coordinator's")
        }
        val message = Codec.parseForDevice(frame) as? Announcement
            ?: throw RemoteProtocolError("another message where announcements are heard")
        return message to frame.certificate
    }

    /**
     * Which of these coordinators' certificates a frame to this device is signed by.
     *
     * Raises RemoteProtocolError or IdentityError: by none of them, or that one is not good now.
     */
    fun signerOf(frame: Frame, certificates: Set<Bytes>, now: Double): Bytes {
        var problem: EdgeError = RemoteProtocolError("the signature is not the coordinator's")
        for (certificate in certificates) {
            try {
                val peer = identity.registrar.verify(certificate, Role.COORDINATOR, now)
                if (Signing.verifyRaw(peer.publicKey, frame.signature, frame.signedFor(identity.id))) return certificate
            } catch (error: IdentityError) {
                problem = error // of one population's coordinator, which silences no other's
            }
        }
        throw problem
    }

    /** The device that signed this, by its certificate; raises IdentityError where either is not good. */
    fun verifyPeer(certificate: Bytes, message: ByteArray, signature: ByteArray, now: Double): String {
        val peer = identity.registrar.verify(certificate, Role.DEVICE, now)
        if (!Signing.verifyRaw(peer.publicKey, signature, message)) throw IdentityError("the signature is not ${peer.id}'s")
        return peer.id
    }
}
