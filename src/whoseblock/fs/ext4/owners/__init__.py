"""The owners of blocks."""
