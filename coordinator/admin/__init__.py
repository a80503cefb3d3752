"""What operators type and see. It calls the service and holds no rules."""
