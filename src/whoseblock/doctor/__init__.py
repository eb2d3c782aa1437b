"""Checks of this machine and of a target: what works, what is missing, and the remedy."""
