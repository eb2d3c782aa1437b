"""Parse kernel logs: prefixes and records, the table of messages, and messages in sequence."""
