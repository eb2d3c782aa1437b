"""Queries that work on any mounted filesystem: GETFSMAP, FIEMAP, handles, names."""
