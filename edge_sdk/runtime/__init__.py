"""What runs a device: transport, stores, driver. The only part of the device side that does I/O."""
