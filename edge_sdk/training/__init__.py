"""Local training: bundles, examples, plans, and the trainer that runs them. Never imports torch."""
