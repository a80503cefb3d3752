"""What becomes of the released mean: pure server optimizers."""
