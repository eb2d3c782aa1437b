"""What the kernel reports of any mounted filesystem: GETFSMAP, FIEMAP, handles, names."""
