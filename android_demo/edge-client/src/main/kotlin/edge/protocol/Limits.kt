package edge.protocol

/**
 * Every size and count that both ends hold each other to (PROTOCOL.md 12).
 *
 * Knows nothing but numbers. A bound written anywhere else is a mistake: the two ends would drift apart.
 */
public object Limits {
    private const val KIB = 1024
    private const val MIB = 1024 * KIB

    public const val CONTROL_FRAME_MAX_BYTES: Int = 60 * KIB
    public const val LARGE_FRAME_MAX_BYTES: Int = 16 * MIB
    public const val CERTIFICATE_MAX_BYTES: Int = 2048
    public const val COHORT_MAX: Int = 65_535
    public const val NEIGHBOURS_MAX: Int = 700
    public const val DIMENSION_MAX: Int = 1 shl 27
    public const val INLINE_UPDATE_MAX_BYTES: Int = 48 * KIB
    public const val CHUNK_DIGEST_BYTES: Int = 12
    public const val CHUNK_HEADER_BYTES: Int = CHUNK_DIGEST_BYTES + 4 + 4
    public const val CHUNK_DEFAULT_BYTES: Int = CONTROL_FRAME_MAX_BYTES - CHUNK_HEADER_BYTES
    public const val CHUNK_MIN_BYTES: Int = 256
    public const val CHUNK_MAX_BYTES: Int = 256 * KIB
    public const val BLOB_MAX_BYTES: Int = 1024 * MIB
    public const val WINDOW_DEFAULT_BYTES: Int = MIB
    public const val WINDOW_MAX_BYTES: Int = 16 * MIB
    public const val PULL_CHUNKS_MAX: Int = 1024
    public const val PULL_RANGES_MAX: Int = 256
    public const val CHUNK_TIMEOUT_S: Double = 5.0
    public const val RETRY_MAX_S: Double = 86_400.0
    public const val EXPIRY_CONTROL_UP_S: Int = 30
    public const val EXPIRY_CHUNK_S: Int = 120
}
