"""Installing a package into a new virtual environment, as a user does, and running it there."""

import json
import os
import subprocess
import sys
from pathlib import Path

from demo.demo import unpack
from tools.release.building import version

from whoseblock.errors import MissingExtraError

__all__ = ["try_package"]

#: The paths that own the 307th page of the demo's image; demo/README.md has them.
_OWNERS = [["/a"], ["/d/e/c"]]


def try_package(package: Path, folder: Path) -> list[str]:
    """Install a package without extras, with what it requires; return what does not work.

    Raises `subprocess.CalledProcessError` if it cannot be installed.
    """
    folder.mkdir()
    environment = folder / "environment"
    # Nothing of the checkout: neither its folder, nor its modules, nor its installed package.
    clean = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}

    def run(*words: str | Path, check: bool = True) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            words, cwd=folder, env=clean, capture_output=True, text=True, check=check
        )

    run(sys.executable, "-m", "venv", environment)
    pip = (environment / "bin" / "pip", "--disable-pip-version-check", "--quiet")
    run(*pip, "install", package)
    run(*pip, "check")
    program = environment / "bin" / "whoseblock"
    image = folder / "disk.img"
    unpack(image)
    problems = []

    shown = run(program, "--version", check=False).stdout.strip()
    if shown != f"whoseblock {version()}":
        problems.append(f"--version prints {shown!r}")

    answer = run(program, "lookup", image, "307p", "--json", check=False)
    owners = json.loads(answer.stdout)["owners"] if answer.returncode == 0 else None
    if owners is None or [owner["paths"] for owner in owners] != _OWNERS:
        problems.append(f"a lookup prints {answer.stdout!r} and {answer.stderr!r}")

    missing = run(program, "journal", "list", "--journal", folder / "journal", check=False)
    sentence = missing.stderr.partition("\n")[0]
    if missing.returncode != MissingExtraError.exit_code or "whoseblock[journal]" not in sentence:
        problems.append(f"without the extra 'journal' it prints {missing.stderr!r}")

    problems += [
        f"it has no completion for {shell}"
        for shell in ("bash", "zsh", "fish")
        if "_WHOSEBLOCK_COMPLETE" not in run(program, "completion", shell, check=False).stdout
    ]
    if not (environment / "share" / "man" / "man1" / "whoseblock.1").is_file():
        problems.append("it installs no man page")
    return problems
