"""The coordinator at work: it carries out what the pure rounds decide."""
