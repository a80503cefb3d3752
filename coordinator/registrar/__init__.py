"""The registrar: the certificate authority that says who is a device, a coordinator or a broker.

A role of its own: where another party than the coordinator's runs it, a coordinator cannot invent devices.
"""
