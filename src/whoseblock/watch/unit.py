"""Write the units by which systemd runs the daemon (systemd.service(5), systemd.socket(5))."""

import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from whoseblock.errors import JournalError, PrivilegeError, TargetError
from whoseblock.journal.host import without_passwords
from whoseblock.media.trusted_files import UntrustedFileError, check_file, find_trusted
from whoseblock.watch.store.state import write_atomically

__all__ = ["INSTALLED", "compose_unit", "find_program", "install_unit", "quote_word"]

#: Where the administrator's units are.
INSTALLED: Final = Path("/etc/systemd/system/whoseblock-watch.service")
_TEMPLATE: Final = Path(__file__).with_name("whoseblock-watch.service")
#: It names its service by its own name, so it needs no change.
_SOCKET: Final = _TEMPLATE.with_suffix(".socket")
_PLAIN: Final = re.compile(rb"[A-Za-z0-9_@%$+=:,./-]+")
#: The lines of the template that leave the daemon no network, and what they are with one.
_NO_NETWORK: Final = "PrivateNetwork=yes\nIPAddressDeny=any\nRestrictAddressFamilies=AF_UNIX\n"
_NETWORK: Final = "RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6\n"
#: A program that needs longer to print its version is not usable.
_PATIENCE_S: Final = 60


def find_program() -> list[str]:
    """Return the command that runs whoseblock as this process does.

    Raises `TargetError` if it does not run in an environment of its own, as systemd starts it.
    """
    called = os.path.abspath(sys.argv[0])  # noqa: PTH100 - links stay: an update may change them
    words = [called]
    if Path(called).name == "__main__.py":
        words = [os.path.abspath(sys.executable), "-m", "whoseblock"]  # noqa: PTH100 - as above
    try:
        done = subprocess.run(  # noqa: S603 - the command that was called
            [*words, "--version"],
            env={},
            cwd="/",
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_PATIENCE_S,
            check=False,
        )
        runs = done.returncode == 0 and done.stdout.startswith(b"whoseblock")
    except (OSError, subprocess.TimeoutExpired):
        runs = False
    if not runs:
        raise TargetError(
            f"systemd cannot run {' '.join(words)!r}: it does not start without the environment of"
            " this shell",
            hint="install whoseblock as the README describes, and call the installed program",
        )
    return words


def compose_unit(command: Sequence[str], *, network: bool) -> str:
    """Return the unit that runs a command; only with a ``network`` may it use one.

    Raises `JournalError` for a password in the command: every user can read a unit.
    """
    if without_passwords(command) != tuple(command):
        raise JournalError(
            "the unit would show the password of the journal to every user",
            hint="leave --journal out, and set WHOSEBLOCK_JOURNAL in an EnvironmentFile= of root's",
        )
    # The program itself is not subject to the expansion of variables.
    program, *rest = command
    words = [quote_word(program).replace("$$", "$"), *map(quote_word, rest)]
    text = _TEMPLATE.read_text("utf-8")
    line = f"ExecStart={' '.join(words)}"
    text = re.sub(r"^ExecStart=.*$", lambda _: line, text, flags=re.MULTILINE)
    return text.replace(_NO_NETWORK, _NETWORK) if network else text


def quote_word(word: str) -> str:
    """Quote an argument for ExecStart=, in which ``%`` and ``$`` are special, too."""
    raw = os.fsencode(word).replace(b"%", b"%%").replace(b"$", b"$$")
    if _PLAIN.fullmatch(raw):
        return raw.decode("ascii")
    safe = "".join(
        chr(byte) if 0x20 <= byte < 0x7F and byte not in b'"\\' else f"\\x{byte:02x}"  # noqa: PLR2004 - printable ASCII
        for byte in raw
    )
    return f'"{safe}"'


def install_unit(text: str, program: Sequence[str], path: Path = INSTALLED) -> list[Path]:
    """Write a service and, beside it, its socket; return the files that have former ones.

    Raises `TargetError` unless only root can change the program, which systemd runs as root.
    """
    _check_trusted(program[0])
    _check_trusted(__file__)
    socket = path.with_suffix(_SOCKET.suffix)
    written = [_replace(socket, _SOCKET.read_text("utf-8")), _replace(path, text)]
    return [kept for kept in written if kept is not None]


def _replace(path: Path, text: str) -> Path | None:
    """Write a unit; return the file that has the former one, if that was another."""
    try:
        former = path.read_text("utf-8", "surrogateescape") if path.exists() else text
        kept = None
        if former != text:
            kept = path.with_name(f"{path.name}.old")
            write_atomically(kept, os.fsencode(former), 0o644)
        write_atomically(path, text.encode(), 0o644)
    except PermissionError as error:
        hint = "try as root; --install-unit - prints the unit"
        raise PrivilegeError(f"cannot write {str(path)!r}: permission denied", hint=hint) from error
    except OSError as error:
        raise TargetError(
            f"cannot write {str(path)!r}: {error.strerror}", hint="--install-unit - prints the unit"
        ) from error
    return kept


def _check_trusted(program: str) -> None:
    """Raise `TargetError` if another user than root could change a program that root will run."""
    try:
        check_file(find_trusted("the program", Path(program), make=False))
    except UntrustedFileError as error:
        raise TargetError(
            f"{error}; the service would run it as root",
            hint="install whoseblock as root, as the README describes, and call that program",
        ) from error
    except OSError as error:
        raise TargetError(f"cannot check {program!r}: {error.strerror}") from error
