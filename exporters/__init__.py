"""From a PyTorch model to a signed training bundle."""
