"""The operator's privacy: calibrating a task, the ledger of what was released, and the accountant over it."""
