"""Parse what the kernel sends, bytes to records, without input or output."""
