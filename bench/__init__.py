"""Measurements: ratios against peers taken in one run, on images made for it."""
