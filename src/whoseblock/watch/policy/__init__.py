"""Decide by rules what is done about a failure, and do it."""
