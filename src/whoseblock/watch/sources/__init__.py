"""Kernel interfaces that report failures, each behind the same protocol."""
