"""Questions to a fleet: signed queries, a device's answer as a bounded vector, and what the noised sum of them says."""
