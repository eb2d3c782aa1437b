"""What is done about a failure: planned, journaled, done, and verified."""
