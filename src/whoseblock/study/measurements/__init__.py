"""Measurements of the designs: workloads, timings, the reverse mapping on the disk."""
