"""The prose checker: the rules for docstrings, documents and words that a machine can check."""
