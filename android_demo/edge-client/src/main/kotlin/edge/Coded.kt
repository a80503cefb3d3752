package edge

/** An enum whose values have numbers on the wire. */
public interface Coded {
    public val code: Int
}
