"""What an operator reads out of a fleet's noised answers."""
