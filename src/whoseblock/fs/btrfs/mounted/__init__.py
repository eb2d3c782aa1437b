"""A mounted btrfs: its last commit on the disks, confirmed by the kernel."""
