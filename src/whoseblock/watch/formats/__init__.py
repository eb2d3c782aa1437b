"""What the kernel says, as bytes, and what it means: no input or output here."""
