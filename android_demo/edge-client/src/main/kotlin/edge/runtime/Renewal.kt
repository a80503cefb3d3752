package edge.runtime

import edge.EdgeError
import edge.Identity
import java.io.File
import java.security.SecureRandom
import kotlin.math.pow

/**
 * Keeps a running device's certificate from expiring.
 *
 * Devices that were enrolled in one hour are not renewed in one hour, and a registrar that does not answer is asked again
 * after five minutes, then after longer and longer, up to six hours. [random] draws from 0 to 1. Raises IdentityError: the
 * folder's certificate cannot be read.
 */
internal class Renewal(
    private val folder: File,
    private val keys: DeviceKeys,
    private val log: (String) -> Unit,
    private val random: () -> Double = SecureRandom()::nextDouble,
) {
    private var failures = 0

    /** When [attempt] is next worth a call, seconds since the epoch. */
    var nextAt: Double = Enrolment.renewalDueAt(folder, SPREAD * random())
        private set

    /** Renews; null where that failed, which is logged and will be tried again. It may take half a minute. */
    fun attempt(now: Double): Identity? = try {
        val identity = Enrolment.renew(folder, now, keys)
        failures = 0
        nextAt = Enrolment.renewalDueAt(folder, SPREAD * random())
        log("${identity.id} has a new certificate")
        identity
    } catch (error: EdgeError) {
        val pauseS = minOf(RETRY_MAX_S, RETRY_MIN_S * 2.0.pow(failures)) * (0.5 + random() / 2)
        failures = minOf(failures + 1, FAILURES_MOST)
        nextAt = now + pauseS
        log("the certificate is not renewed: ${error.message} (${error.hint}); tried again in ${(pauseS / 60).toInt()} min")
        null
    }

    private companion object {
        /** Share of a certificate's life over which a fleet's renewals are spread. */
        const val SPREAD = 0.1
        const val RETRY_MIN_S = 300.0
        const val RETRY_MAX_S = 6 * 3600.0
        const val FAILURES_MOST = 30
    }
}
