"""``whoseblock watch``: the daemon, or one sweep of the kernel's log and lists."""

import os
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import click

from whoseblock import __version__
from whoseblock.cli.command import Command
from whoseblock.errors import NEWS
from whoseblock.extras import check_extra

__all__ = ["watch"]

_INTERVAL_S: Final = 60
_ADDRESS: Final = re.compile(r"(?:(?:\[([^\[\]]+)\]|([^:\[\]]*)):)?([0-9]{1,5})", re.ASCII)


@click.command(
    cls=Command,
    epilog="""\b
Sources, each used where available:
  the kernel's log
  tracepoints of memory failures and of failed requests
  lists of bad blocks in sysfs
  the health monitors of mounted filesystems
  fanotify

\b
Signals:
  SIGHUP     reload the policy; an invalid policy does not replace the old one
  SIGTERM    stop after the present batch is journaled

\b
Examples:
  whoseblock watch                            journal and log every failure
  whoseblock watch --policy /etc/whoseblock/policy.toml --metrics-port 9719
  whoseblock watch --policy /etc/whoseblock/policy.toml --install-unit
  whoseblock watch --once || mail -s "bad blocks" root < /dev/null""",
)
@click.option(
    "--policy",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Policy in TOML: the actions that failures may cause.  Without a policy, failures are only"
    " journaled and logged.",
)
@click.option(
    "--journal",
    metavar="URL",
    help="Journal to use: a file, or postgresql://USER@HOST/DATABASE.  [default:"
    " $WHOSEBLOCK_JOURNAL, or the file in the state folder]",
)
@click.option(
    "--once",
    is_flag=True,
    help="Read the kernel's log and lists once, and exit; the exit code is 20 if there were new"
    " failures.",
)
@click.option(
    "--interval",
    type=click.FloatRange(0.1, 86400),
    default=_INTERVAL_S,
    show_default=True,
    metavar="SECONDS",
    help="Polling interval for lists of bad blocks without change notification.",
)
@click.option(
    "--metrics-port",
    metavar="[ADDRESS:]PORT",
    help="Serve metrics to Prometheus; only to this machine, unless ADDRESS is given.  An IPv6"
    " address is in brackets.",
)
@click.option(
    "--metrics-file",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Write metrics to FILE, for the textfile collector of the node exporter.",
)
@click.option(
    "--state",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="DIR",
    help="Folder for unprocessed reports and the state.  [default: /var/lib/whoseblock/watch;"
    " without root, a folder in the user's state folder]",
)
@click.option(
    "--install-unit",
    is_flag=False,
    flag_value="",
    type=click.Path(dir_okay=False),
    metavar="[FILE]",
    help="Write a unit for systemd that runs this program with the options given, and its socket"
    " unit beside it, and exit; FILE - prints the first.  [default FILE:"
    " /etc/systemd/system/whoseblock-watch.service]",
)
@click.option(
    "--root",
    default="/",
    type=click.Path(exists=True, file_okay=False),
    metavar="DIR",
    help="Read /sys, /proc and /dev/kmsg below DIR, an unpacked snapshot of a machine.",
)
def watch(  # noqa: PLR0913 - as many as there are options
    policy: Path | None,
    journal: str | None,
    once: bool,
    interval: float,
    metrics_port: str | None,
    metrics_file: Path | None,
    state: Path | None,
    install_unit: str | None,
    root: str,
) -> None:
    """Watch for failures, and journal their owners.

    While there are no failures, the daemon waits for the kernel and does nothing.
    """
    check_extra("journal")
    if metrics_port is not None or metrics_file is not None:
        check_extra("watch")
    if install_unit is not None:
        if once or root != "/":
            raise click.UsageError("--install-unit takes neither --once nor --root")
        _install_unit(
            install_unit,
            {
                "--policy": policy and policy.absolute(),
                "--journal": _absolute_journal(journal),
                "--interval": None if interval == _INTERVAL_S else f"{interval:g}",
                "--metrics-port": metrics_port,
                "--metrics-file": metrics_file and metrics_file.absolute(),
                "--state": state and state.absolute(),
            },
        )
        return
    from whoseblock.watch.daemon import Options, sweep_once
    from whoseblock.watch.process import become_daemon
    from whoseblock.watch.store.state import usual_state_folder

    options = Options(
        state=state or usual_state_folder(),
        policy=policy,
        journal=journal,
        interval=interval,
        metrics_port=None if metrics_port is None else _address(metrics_port),
        metrics_file=metrics_file,
        root=root,
        version=__version__,
    )
    if not once:
        become_daemon(options)
    done = sweep_once(options)
    new = sum(done.failures.values())
    ranges, size = done.unhealed or (0, 0)
    click.echo(f"{new} new failures, {done.healed} healed; {ranges} are open, of {size} bytes")
    if new:
        sys.exit(NEWS)


def _install_unit(file: str, options: Mapping[str, object]) -> None:
    """Write the units that run this program with some options, or print the service."""
    from whoseblock.watch.unit import INSTALLED, compose_unit, find_program, install_unit

    port, journal = options["--metrics-port"], str(options["--journal"] or "")
    if port is not None:
        _address(str(port))
    given = [str(word) for one in options.items() if one[1] is not None for word in one]
    program = find_program()
    text = compose_unit([*program, "watch", *given], network=port is not None or "://" in journal)
    if file == "-":
        click.echo(text, nl=False)
        return
    path = Path(file or INSTALLED).absolute()
    kept = install_unit(text, program, path)
    click.echo(f"wrote {path} and {path.with_suffix('.socket').name}")
    for former in kept:
        click.echo(f"the former unit is {former}")
    click.echo(f"start it: systemctl daemon-reload && systemctl enable --now {path.stem}")


def _absolute_journal(given: str | None) -> str | None:
    """Return the URL or the path of the journal as a service needs it, None for the usual one."""
    journal = given or os.environ.get("WHOSEBLOCK_JOURNAL") or None
    return journal if journal is None or "://" in journal else os.path.abspath(journal)  # noqa: PTH100 - links stay


def _address(text: str) -> tuple[str, int]:
    """Parse ``[ADDRESS:]PORT``; an address with colons is in brackets, as in a URL."""
    match = _ADDRESS.fullmatch(text)
    if match is None or int(match[3]) > 65535:  # noqa: PLR2004 - the last there is
        hint = "an IPv6 address is in brackets: [::1]:9719"
        raise click.BadParameter(
            f"{text!r} is not [ADDRESS:]PORT; {hint}", param_hint="--metrics-port"
        )
    return match[1] or match[2] or "127.0.0.1", int(match[3])
