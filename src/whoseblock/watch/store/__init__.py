"""Files of the state folder: reports, the spool, and what the daemon remembers."""
