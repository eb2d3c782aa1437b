"""Readers of the running kernel's view of devices, from /sys, /proc and ioctls."""
