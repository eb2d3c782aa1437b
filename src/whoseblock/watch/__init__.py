"""Watch for failures while the machine runs, journal their owners, and act by a policy.

A collector waits for the kernel and spools its reports. A worker, which lives only while the spool
holds reports, looks up the owners, journals them and plans what the policy allows. See
docs/internals/watch.md.
"""
