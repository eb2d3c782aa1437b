"""What may be done about a failure, and how each action is performed."""
