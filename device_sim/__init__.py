"""Many devices on one machine."""
