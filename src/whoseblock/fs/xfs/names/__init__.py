"""The paths of inodes: from directories, attributes and parent pointers."""
