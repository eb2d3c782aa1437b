"""Parsers of failure reports: kernel logs, block lists, the reports of programs, addresses."""
