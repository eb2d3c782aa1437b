"""From an inode to all of its paths, in every subvolume."""
