"""Parsers of failure reports: one module for each form of report."""
