"""Parse maps and lists of bad blocks, as rescue programs and the kernel keep them."""
