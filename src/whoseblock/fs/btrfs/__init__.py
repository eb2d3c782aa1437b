"""btrfs: a reader of its trees, and the owners of its blocks by back references."""
