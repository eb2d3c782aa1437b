"""Filesystems: each in a package of its own, all behind `whoseblock.fs.base.Filesystem`."""
