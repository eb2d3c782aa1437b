"""Turn reports into failure records: where a failure is, and who owns it."""
