"""Report the state of the daemon: metrics, the status socket, and messages to systemd."""
