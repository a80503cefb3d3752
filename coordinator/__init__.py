"""What an operator runs: rounds, secure aggregation, the registry, the service and its tools."""
