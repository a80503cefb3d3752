"""The device's privacy pipeline as pure functions: clip, rotate, round, add noise; and the accounting.

Knows no clock, store or random source: entropy comes in as bytes.
"""
