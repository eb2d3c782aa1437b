"""From a report to a failure record: where it is, and who owns it."""
