"""The migrations of the journal's schema, run by `whoseblock.journal.versions`."""
