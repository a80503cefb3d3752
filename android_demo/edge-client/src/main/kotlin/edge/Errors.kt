package edge

/**
 * Base of all errors raised on purpose: the message names what was wrong, the [hint] says what to do about it.
 *
 * Knows nothing else of the client, so that every file may use it.
 */
public sealed class EdgeError(message: String, public val hint: String, cause: Throwable?) : Exception(message, cause)

/** A setting, an argument or a file that a person wrote is unusable. */
public class ConfigError(message: String, hint: String = "", cause: Throwable? = null) : EdgeError(message, hint, cause)

/** The protocol was broken; see the two kinds below. */
public sealed class ProtocolError(message: String, hint: String, cause: Throwable?) : EdgeError(message, hint, cause)

/** This side tried something that the protocol forbids in its state: a bug here. */
public class LocalProtocolError(message: String, hint: String = "", cause: Throwable? = null) :
    ProtocolError(message, hint, cause)

/** The other side sent something malformed, unauthentic or out of place. */
public class RemoteProtocolError(message: String, hint: String = "", cause: Throwable? = null) :
    ProtocolError(message, hint, cause)

/** The broker or the network cannot be used. */
public class TransportError(message: String, hint: String = "", cause: Throwable? = null) :
    EdgeError(message, hint, cause)

/** Durable state cannot be read or written. */
public class StoreError(message: String, hint: String = "", cause: Throwable? = null) : EdgeError(message, hint, cause)

/** A key or certificate is missing, wrong, expired or not trusted. */
public class IdentityError(message: String, hint: String = "", cause: Throwable? = null) :
    EdgeError(message, hint, cause)

/** A bundle is malformed, tampered with, not trusted or not for this runtime. */
public class ArtifactError(message: String, hint: String = "", cause: Throwable? = null) :
    EdgeError(message, hint, cause)

/** Training, evaluation or prediction failed on this device. */
public class TrainingError(message: String, hint: String = "", cause: Throwable? = null) :
    EdgeError(message, hint, cause)

/** Training took more of the machine than its owner allows. */
public class BudgetExceeded(message: String, hint: String = "", cause: Throwable? = null) :
    EdgeError(message, hint, cause)

/** A plan is weaker than the policy, or privacy parameters cannot be met. */
public class PrivacyError(message: String, hint: String = "", cause: Throwable? = null) :
    EdgeError(message, hint, cause)
