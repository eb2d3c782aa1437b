"""Standard error for inputs without failures, and for options without effect."""

import json
from pathlib import Path

import pytest
from demo.demo import unpack
from tests.support.commands import Run, runner_in

ALL_RESCUED = "# Mapfile\n0x0 + 1\n0x0 0x12C00000 +\n"
CLEAN = "[    1.000000] usb 1-1: new device\n" * 3
SECTOR = "[1.0] critical medium error, dev sdb, sector 2456 op 0x0:(READ) flags 0x0 phys_seg 1\n"
FAILED_TEST = json.dumps(
    {
        "smartctl": {},
        "ata_smart_self_test_log": {
            "standard": {"table": [{"status": {"value": 116, "string": "read failure"}}]}
        },
    }
)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("notices")
    unpack(folder / "disk.img")
    (folder / "other.img").write_bytes(bytes(1 << 20))
    return runner_in(folder)


@pytest.mark.parametrize("verb", ["lookup", "respond"])
@pytest.mark.parametrize(
    ("words", "text", "said"),
    [
        (["--dmesg"], CLEAN, "0 failures in 3 lines"),
        (["--dmesg"], "", "0 failures in 0 lines"),
        (["--ranges"], "# none\n\n", "0 failures in 2 lines"),
        (["--mapfile"], ALL_RESCUED, "0 failures in 1 block; no block has a status of ? * / -"),
        (["--block-size=4096", "--badblocks"], "\n", "0 failures in 1 line"),
        (["--ndctl"], "[]", "0 failures in 0 devices"),
        (["--ndctl"], '{"dev":"region0"}', "0 failures in 1 device"),
        (["--ndctl"], '{"dev":"region0","badblock_count":4}', "region0: badblock_count 4 without"),
        (["--smart"], '{"smartctl":{}}', "it holds no error, self-test or defect log"),
        (
            ["--smart"],
            FAILED_TEST,
            "1 log entry reports an error in a form that is not recognised: ata_smart_self_test_l",
        ),
    ],
)
def test_an_input_without_failures_is_reported(  # noqa: PLR0913 - a fixture or a parameter each
    run: Run, tmp_path: Path, verb: str, words: list[str], text: str, said: str
) -> None:
    journal = ["--journal", str(tmp_path / "journal")] if verb == "respond" else []
    done = run(verb, "disk.img", *words, "-", *journal, stdin=text)
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    assert done.stderr.startswith("whoseblock: standard input: ")
    assert said in done.stderr
    assert done.stderr.count("\n") == 1


def test_emulate_reports_an_empty_list_too(run: Run, tmp_path: Path) -> None:
    # It serves nothing in a folder that is not empty, and ends.
    (tmp_path / "file").touch()
    done = run("emulate", "disk.img", str(tmp_path), "--ranges", "-", stdin="")
    assert done.returncode == 3
    assert "standard input: 0 failures in 0 lines" in done.stderr


@pytest.mark.parametrize("form", ["--dmesg", "--ranges", "--mapfile", "--ndctl", "--smart"])
def test_random_bytes_are_an_error_in_every_form(run: Run, form: str) -> None:
    noise = bytes(range(256)) * 400
    done = run("lookup", "disk.img", form, "-", stdin=noise)
    assert done.returncode in {4, 11}
    assert done.stderr.startswith("whoseblock: standard input")
    assert len(done.stderr) < 500


@pytest.mark.parametrize("form", ["--mapfile", "--ranges"])
def test_a_line_without_an_end_is_an_error(run: Run, form: str) -> None:
    done = run("lookup", "disk.img", form, "-", stdin=bytes(1 << 20))
    assert done.returncode in {4, 11}
    assert len(done.stderr) < 300


def test_a_file_that_cannot_be_read_is_named(run: Run) -> None:
    done = run("lookup", "disk.img", "--dmesg", "/proc/self/mem")
    assert done.returncode == 1
    assert "cannot read /proc/self/mem: Input/output error" in done.stderr


def test_other_errors_are_reported_beside_failures(run: Run) -> None:
    other = "[1.0] EXT4-fs error (device sdq1): ext4_find_entry:1455: inode #2: comm ls\n"
    done = run("lookup", "disk.img", "--dmesg", "-", "--json", stdin=SECTOR + other)
    assert "1 failure in 2 lines; 1 line reports an error" in done.stderr
    (answer,) = map(json.loads, done.stdout.splitlines())
    assert answer["complete"] is True
    assert any("the bad sector may lie further on" in note for note in answer["notes"])


def test_the_summary_reports_the_same(run: Run) -> None:
    done = run("lookup", "disk.img", "--dmesg", "-", "--summary", stdin=SECTOR)
    assert "note: the failed request, or the rest of it, begins at this sector" in done.stdout


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["307p", "--device", "sdq"], "--device sdq had no effect: no failure names a device"),
        (["307p", "--member", "other.img"], "--member other.img had no effect"),
        (["307p", "--log-device", "other.img"], "--log-device had no effect: the log of"),
        (["307p", "--realtime-device", "other.img"], "--realtime-device had no effect: the files"),
    ],
)
def test_an_option_without_effect_is_reported(run: Run, words: list[str], said: str) -> None:
    done = run("lookup", "disk.img", *words)
    assert done.returncode == 0
    assert f"whoseblock: {said}" in done.stderr
    assert "/d/e/c" in done.stdout


def test_a_device_that_no_failure_names_is_reported(run: Run) -> None:
    done = run("lookup", "disk.img", "--dmesg", "-", "--device", "sdq", stdin=SECTOR)
    assert "--device sdq had no effect: the failures are of other devices" in done.stderr
    assert "1 failure of sdb skipped" in done.stderr


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["307p", "--processes"], "--processes needs a mounted filesystem"),
        (["307p", "--verify"], "--verify needs a mounted filesystem"),
        (["307p", "--processes", "--offline"], "--offline does not"),
        (["307p", "--summary", "--processes"], "--processes has no effect with --summary"),
        (["307p", "--output", "x.csv", "--verify"], "--verify has no effect with --output"),
        (["307p", "--output", "x.csv", "--output", "y.csv"], "--output is given 2 times"),
        (["307p", "--ranges", "/dev/null", "--ranges", "/dev/null"], "--ranges is given 2 times"),
        (["307p", "--mapfile-status", "-"], "--mapfile-status has no effect without --mapfile"),
        (["307p", "--block-size", "4096"], "--block-size has no effect without --badblocks"),
    ],
)
def test_an_option_that_cannot_have_an_effect_is_refused(
    run: Run, words: list[str], said: str
) -> None:
    done = run("lookup", "disk.img", *words)
    assert (done.returncode, done.stdout) == (2, "")
    assert said in done.stderr


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["disk.img", "307p", "--yes"], "--yes has no effect without --apply"),
        (["disk.img", "307p", "--verify-whole"], "--verify-whole has no effect without"),
        (["disk.img", "307p", "--accept-older"], "--accept-older has no effect without"),
        (["disk.img", "307p", "--accept-zeros"], "--accept-zeros has no effect without"),
        (["disk.img", "307p", "--prefer", "copy"], "--prefer has no effect without"),
        (
            ["disk.img", "307p", "--restore-from", ".", "--restore-map", "disk.img"],
            "--restore-map has no effect without --restore-file",
        ),
        (["--resume", "--punch"], "--punch has no effect with --resume"),
        (["--resume", "--offline"], "--offline has no effect with --resume"),
        (["--resume", "--sysfs-badblocks"], "--sysfs-badblocks has no effect with --resume"),
        (["--resume", "disk.img", "307p"], "RANGE has no effect with --resume"),
    ],
)
def test_respond_refuses_options_without_effect(
    run: Run, tmp_path: Path, words: list[str], said: str
) -> None:
    done = run("respond", *words, "--journal", str(tmp_path / "journal"))
    assert (done.returncode, done.stdout) == (2, "")
    assert said in done.stderr
    assert not (tmp_path / "journal").exists()


def test_an_internal_log_is_not_taken_for_an_external_one(run: Run) -> None:
    words = ("--log-device", "other.img", "--address-space", "log")
    done = run("lookup", "disk.img", "0", *words)
    assert done.returncode == 7
    assert "the filesystem on disk.img has no log device: its log is internal" in done.stderr
