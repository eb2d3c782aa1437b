"""From a range of the device to its owners, by the extent tree."""
