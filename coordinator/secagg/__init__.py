"""The server's side of secure aggregation as pure functions. Knows no clock, store or random source."""
