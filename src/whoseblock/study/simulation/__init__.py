"""A simulated filesystem on persistent memory: extents, page cache entries, failures, workloads."""
