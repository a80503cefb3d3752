package edge.android

/** Calls what the oldest supported Android lacks; its callers ask for the version first. The API-level check skips it. */
@Retention(AnnotationRetention.BINARY)
@Target(AnnotationTarget.FUNCTION, AnnotationTarget.CLASS)
public annotation class NewerApi
