"""The daemon: who reports failures while the machine runs, and what is done about each.

A collector waits for the kernel and writes what it says to a spool; a worker, which lives only as
long as there is something to do, finds the owners, journals them, and does what the policy allows.
docs/internals/watch.md has the whole of it.
"""
