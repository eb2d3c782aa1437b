"""The names of inodes."""
