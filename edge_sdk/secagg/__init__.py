"""Secure aggregation as pure functions: the suite, modular vectors, Shamir, the graph, the device's stages.

Knows no clock, socket, disk or random source: entropy comes in as bytes. PROTOCOL.md is normative.
"""
