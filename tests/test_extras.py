"""The core works without any extra; a missing extra is reported in one sentence."""

import subprocess
import sys
import tomllib
from importlib.metadata import version
from pathlib import Path

import pytest
from demo.demo import unpack
from tests.support.tools import CHECKOUT

from whoseblock import __version__
from whoseblock.errors import MissingExtraError
from whoseblock.extras import EXTRAS, check_extra, import_extra

PROJECT = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())

#: Runs the command line where the modules that the first argument names are not installed.
WITHOUT = """
import sys
from importlib.abc import MetaPathFinder

hidden = set(sys.argv.pop(1).split(","))

class Refuse(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in hidden:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Refuse())
from whoseblock.cli import main
main()
"""
ALL = ",".join(extra.module for extra in EXTRAS.values())


def without(
    modules: str, *words: str | Path, folder: Path | None = None
) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-c", WITHOUT, modules, *words],
        capture_output=True,
        text=True,
        check=False,
        cwd=folder,
        timeout=60,
    )


@pytest.fixture(name="image", scope="module")
def _image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("extras") / "disk.img"
    unpack(path)
    return path


@pytest.mark.parametrize(
    "words",
    [
        ["lookup", "307p"],
        ["lookup", "307p", "--json"],
        ["lookup", "307p", "--summary"],
        ["stack"],
    ],
)
def test_lookup_and_stack_need_no_extra(image: Path, words: list[str]) -> None:
    verb, *more = words
    alone = without(ALL, verb, image, *more)
    usual = without("none", verb, image, *more)
    assert (alone.returncode, alone.stdout) == (usual.returncode, usual.stdout)
    assert alone.returncode == 0, alone.stderr


@pytest.mark.parametrize(
    "words",
    [
        ["--help"],
        ["--version"],
        *(
            [verb, "--help"]
            for verb in "lookup stack respond journal watch status emulate study".split()
        ),
    ],
)
def test_help_needs_no_extra(words: list[str]) -> None:
    done = without(ALL, *words)
    assert done.returncode == 0, done.stderr
    assert done.stdout


@pytest.mark.parametrize(
    ("extra", "words"),
    [
        ("journal", ["respond", "IMAGE", "307p", "--journal", "FOLDER/journal"]),
        ("journal", ["respond", "--resume", "--journal", "FOLDER/journal"]),
        ("journal", ["journal", "list", "--journal", "FOLDER/journal"]),
        ("journal", ["watch", "--once", "--state", "FOLDER/state"]),
        ("journal", ["watch", "--state", "FOLDER/state"]),
        ("postgresql", ["journal", "list", "--journal", "postgresql://localhost/none"]),
        ("watch", ["watch", "--metrics-port", "0", "--state", "FOLDER/state"]),
        ("watch", ["watch", "--metrics-file", "FOLDER/metrics", "--state", "FOLDER/state"]),
        ("emulate", ["emulate", "IMAGE", "FOLDER/served"]),
        ("study", ["study", "IMAGE", "--figures", "FOLDER/figures"]),
    ],
)
def test_a_missing_extra_is_one_sentence(
    image: Path, tmp_path: Path, extra: str, words: list[str]
) -> None:
    (tmp_path / "served").mkdir()
    given = [word.replace("IMAGE", str(image)).replace("FOLDER", str(tmp_path)) for word in words]
    done = without(EXTRAS[extra].module, *given, folder=tmp_path)
    assert (done.returncode, done.stdout) == (MissingExtraError.exit_code, "")
    package = EXTRAS[extra].package
    sentence, hint = done.stderr.splitlines()
    assert sentence.endswith(f" needs {package}; install whoseblock[{extra}]")
    assert hint == f"hint: pip install 'whoseblock[{extra}]'"
    # Nothing was begun.
    assert sorted(path.name for path in tmp_path.iterdir()) == ["served"]


@pytest.mark.parametrize("extra", EXTRAS)
def test_an_installed_extra_is_imported(extra: str) -> None:
    check_extra(extra)
    assert import_extra(extra).__name__ == EXTRAS[extra].module


def test_an_import_error_inside_an_extra_is_not_hidden(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "broken_extra.py").write_text("import no_such_module\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(EXTRAS, "study", EXTRAS["study"]._replace(module="broken_extra"))
    with pytest.raises(ModuleNotFoundError, match="no_such_module"):
        import_extra("study")


def test_the_project_declares_these_extras() -> None:
    declared = PROJECT["project"]["optional-dependencies"]
    assert set(declared) == {*EXTRAS, "all"}
    for name, extra in EXTRAS.items():
        assert any(one.startswith(extra.package) for one in declared[name])
    (everything,) = declared["all"]
    assert set(everything.removeprefix("whoseblock[").removesuffix("]").split(",")) == set(EXTRAS)
    # The development environment has all of them, with the same bounds.
    packages = {one for name in EXTRAS for one in declared[name] if not one.startswith("whose")}
    assert set(PROJECT["dependency-groups"]["extras"]) == packages
    assert {"include-group": "extras"} in PROJECT["dependency-groups"]["dev"]


def test_the_version_has_one_source() -> None:
    assert "version" in PROJECT["project"]["dynamic"]
    assert PROJECT["tool"]["hatch"]["version"]["path"] == "src/whoseblock/__init__.py"
    assert version("whoseblock") == __version__


def test_the_locks_have_the_packages_of_their_group() -> None:
    def locked(name: str) -> set[str]:
        lines = (CHECKOUT / "requirements" / name).read_text().splitlines()
        return {line.partition("==")[0].lower() for line in lines if "==" in line}

    extras = {extra.package.lower() for extra in EXTRAS.values()}
    assert locked("core.lock") & extras == set()
    assert extras <= locked("dev.lock")
    assert locked("core.lock") <= locked("dev.lock")
    for lock in ("core.lock", "dev.lock"):
        assert locked(lock) & {"alembic", "mako"} == set()
