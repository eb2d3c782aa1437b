"""Output that cannot be written, and the files that --output leaves behind."""

import os
import stat
import subprocess
from pathlib import Path

import pytest
from demo.demo import unpack
from tests.support.commands import COMMAND

FULL = Path("/dev/full")


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("output") / "disk.img"
    unpack(path)
    return path


def run(*words: str | Path, **options: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(  # type: ignore[call-overload, no-any-return]
        [*COMMAND, *words], stderr=subprocess.PIPE, text=True, check=False, **options
    )


@pytest.mark.parametrize("place", ["missing/list.csv", "full.csv", "folder.csv/list.json"])
def test_a_file_that_cannot_be_written_is_named(image: Path, tmp_path: Path, place: str) -> None:
    (tmp_path / "full.csv").symlink_to(FULL)
    (tmp_path / "folder.csv").touch()
    path = tmp_path / place
    done = run("lookup", image, "307p", "--output", path, stdout=subprocess.PIPE)
    assert (done.returncode, done.stdout) == (19, "")
    assert done.stderr.startswith(f"whoseblock: cannot write '{path}': ")
    assert sorted(os.listdir(tmp_path)) == ["folder.csv", "full.csv"]


def test_a_list_is_there_whole_or_not_at_all(image: Path, tmp_path: Path) -> None:
    path = tmp_path / "list.csv"
    path.write_text("the old one")
    path.chmod(0o640)
    # The signal would end the program; ignored, a larger file is an error of write(2).
    limited = ["sh", "-c", 'trap "" XFSZ; ulimit -f 0; exec "$@"', "sh", *COMMAND]
    done = subprocess.run(
        [*limited, "lookup", image, "307p", "--output", path],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 19
    assert f"cannot write '{path}': File too large" in done.stderr
    assert path.read_text() == "the old one"
    assert os.listdir(tmp_path) == ["list.csv"]
    assert run("lookup", image, "307p", "--output", path, stdout=subprocess.PIPE).returncode == 0
    assert path.read_text().startswith("path,layer,")
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    assert os.listdir(tmp_path) == ["list.csv"]


def test_a_link_stays_one_and_a_new_file_is_not_secret(image: Path, tmp_path: Path) -> None:
    (tmp_path / "link.json").symlink_to(tmp_path / "list.json")
    words = ("lookup", image, "307p", "--output", tmp_path / "link.json")
    assert run(*words, stdout=subprocess.DEVNULL, umask=0o022).returncode == 0
    assert (tmp_path / "link.json").is_symlink()
    assert stat.S_IMODE((tmp_path / "list.json").stat().st_mode) == 0o644


@pytest.mark.parametrize(
    "words", [["lookup", "{}", "307p"], ["lookup", "{}", "307p", "--json"], ["stack", "{}"]]
)
def test_a_full_standard_output_is_named(image: Path, words: list[str]) -> None:
    with FULL.open("wb") as full:
        done = run(*(word.format(image) for word in words), stdout=full)
    assert done.returncode == 19
    assert done.stderr == "whoseblock: cannot write standard output: No space left on device\n"


def test_a_closed_standard_output_is_refused(image: Path) -> None:
    closed = ["sh", "-c", 'exec "$@" >&-', "sh", *COMMAND, "lookup", str(image), "307p"]
    done = subprocess.run(closed, stderr=subprocess.PIPE, text=True, check=False)
    assert (done.returncode, done.stderr) == (19, "whoseblock: standard output is closed\n")
