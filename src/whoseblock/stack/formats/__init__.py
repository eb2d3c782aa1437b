"""Parsers of on-disk formats: bytes of a medium in, frozen records out."""
