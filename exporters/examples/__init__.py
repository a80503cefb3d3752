"""Models to export and learn from."""
