"""Mounted XFS: bulkstat, parent pointers, geometry, exchange of file ranges."""
