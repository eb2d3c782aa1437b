"""A forward scan: the owners of blocks on filesystems without a reverse map, found on demand."""
