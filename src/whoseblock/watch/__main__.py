"""``python -m whoseblock.watch``: the process of the daemon, started by ``whoseblock watch``."""

import sys

from whoseblock.watch.process import run_daemon

try:
    run_daemon(sys.argv[1:])
except Exception as error:  # noqa: BLE001 - reported as by every other command
    from whoseblock.cli import report_error

    sys.exit(report_error(error))
