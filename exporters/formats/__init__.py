"""Other formats than ONNX for the graphs of a bundle."""
