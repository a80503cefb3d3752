"""Serving predictions on the device: the predictor, and the models that are installed."""
