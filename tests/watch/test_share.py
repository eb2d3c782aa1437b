"""The files in share/: the example of a policy, hooks of other programs, alerts."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tests.support.commands import whoseblock
from tests.support.tools import CHECKOUT, program, run

from whoseblock.watch.policy.parsing import parse_policy, read_policy
from whoseblock.watch.statistics import Statistics
from whoseblock.watch.status.metrics import format_metrics
from whoseblock.watch.store.spool import Backlog

SHARE = CHECKOUT / "share"


def test_the_example_does_nothing_until_it_is_asked_to() -> None:
    example = SHARE / "policy.toml"
    assert read_policy(example).rules == ()
    # Every rule in it is one.
    told = re.sub(r"^# (?=\[\[|[a-z-]+ = )", "", example.read_text("utf-8"), flags=re.MULTILINE)
    # Its programs are examples, too.
    assert [rule.name for rule in parse_policy(example.name, told, here=False).rules] == [
        "page",
        "database",
        "restore",
        "heal",
    ]


@pytest.mark.parametrize("block", ["policy.toml"])
def test_the_policy_of_the_guide_is_valid(block: str) -> None:
    guide = (CHECKOUT / "docs/guides/watch.md").read_text("utf-8")
    found = re.search(rf"<!-- file: {re.escape(block)} -->\n```text\n(.*?)```", guide, re.DOTALL)
    assert found is not None
    assert [rule.actions for rule in parse_policy(block, found[1], here=False).rules] == [
        ("exec", "signal"),
        ("respond",),
    ]


# ------------------------------------------------------------------ hooks


def stub(folder: Path, name: str, output: str = "") -> Path:
    """Make a program that prints a text, and stores its arguments and its input.

    There is no mail server, no system log and no disk with SMART here.
    """
    path = folder / name
    path.write_text(
        f"#!/bin/sh\ncat >'{folder}/{name}.input'\nprintf '%s\\n' \"$@\" >'{folder}/{name}.words'\n"
        f"cat <<'end'\n{output}\nend\n"
    )
    path.chmod(0o755)
    return folder / f"{name}.input"


def run_hook(
    name: str, *words: str | Path, folder: Path, stdin: str = "", **more: str
) -> subprocess.CompletedProcess[str]:
    """Run a hook with stubs before the other programs."""
    program = folder / "whoseblock"
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m whoseblock "$@"\n')
    program.chmod(0o755)
    environment = os.environ | more | {"PATH": f"{folder}:{os.environ['PATH']}"}
    return subprocess.run(
        [SHARE / "hooks" / name, *words],
        input=stdin,
        capture_output=True,
        check=False,
        text=True,
        env=environment,
    )


def test_the_warning_of_smartd_has_the_files(demo_image: Path, tmp_path: Path) -> None:
    failed: dict[str, Any] = {"lba": 2456, "type": {"string": "Extended offline"}}
    failed["status"] = {"value": 112, "string": "Completed: read failure", "passed": False}
    smartctl: dict[str, Any] = {"json_format_version": [1, 0], "logical_block_size": 512}
    smartctl["smartctl"] = {"exit_status": 0}
    smartctl["ata_smart_self_test_log"] = {"extended": {"table": [failed]}}
    stub(tmp_path, "smartctl", json.dumps(smartctl))
    mail = stub(tmp_path, "mail")
    given = {"SMARTD_DEVICE": str(demo_image), "SMARTD_FULLMESSAGE": "a warning"}
    done = run_hook("smartd", folder=tmp_path, SMARTD_ADDRESS="root other", **given)
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "mail.words").read_text().split("\n")[2:4] == ["root", "other"]
    text = mail.read_text()
    assert text.startswith("a warning\n")
    assert "/a\n" in text
    assert "/d/e/c" in text
    assert "asked" in text
    # Without an address, it goes to the log.
    log_input = stub(tmp_path, "logger")
    assert run_hook("smartd", folder=tmp_path, **given).returncode == 0
    assert log_input.read_text() == text


def test_mdadm_looks_up_the_bad_blocks_of_members(tmp_path: Path) -> None:
    log = stub(tmp_path, "logger")
    lists = tmp_path / "sys/block/md0/md"
    for name, text in (("dev-sda1", "1234 8\n"), ("dev-sdb1", "")):
        (lists / name).mkdir(parents=True)
        (lists / name / "bad_blocks").write_text(text)
    words = ("Fail", "/dev/md0", "/dev/sda1")
    run_hook("mdadm", *words, folder=tmp_path, SYSFS=str(tmp_path / "sys"))
    text = log.read_text()
    assert text.startswith("Fail of /dev/md0, /dev/sda1\n")
    # There is no such disk here; the list of the other is empty.
    assert text.count("/dev/sda1") >= 2
    assert "sdb1" not in text
    log.unlink()
    done = run_hook("mdadm", "SpareActive", "/dev/md0", folder=tmp_path)
    assert done.returncode == 0
    assert not log.exists()


def test_a_finding_is_mailed(demo_image: Path, tmp_path: Path) -> None:
    finding = whoseblock("lookup", demo_image, "307p", "--json").stdout
    mail = stub(tmp_path, "mail")
    done = run_hook("mail", "root", folder=tmp_path, stdin=finding)
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "mail.words").read_text().split("\n")[2] == "root"
    assert "/a" in mail.read_text()
    assert "/d/e/c" in mail.read_text()


# ------------------------------------------------------------------ metrics


def names_of_metrics() -> set[str]:
    """Return the names of all samples that the daemon can write."""
    counts = Statistics()
    counts.reports["kmsg"] = counts.lost["kmsg"] = counts.ill["kmsg"] = 1
    counts.failures["sda"] = counts.bytes["file"] = counts.actions["exec done"] = 1
    counts.unhealed = (1, 512)
    page = format_metrics(counts, {"kmsg": (True, "")}, Backlog(0, 0.0)).decode()
    return set(re.findall(r"^(whoseblock_\w+)", page, re.MULTILINE))


@pytest.mark.parametrize("name", ["prometheus/whoseblock.rules.yml", "grafana/whoseblock.json"])
def test_every_metric_in_use_exists(name: str) -> None:
    text = (SHARE / name).read_text("utf-8")
    used = set(re.findall(r"whoseblock_\w+", text))
    assert len(used) >= 6
    assert used <= names_of_metrics()


def test_the_alerts_fire_when_they_should() -> None:
    folder = SHARE / "prometheus"
    run([program("promtool"), "check", "rules", folder / "whoseblock.rules.yml"])
    run([program("promtool"), "test", "rules", folder / "whoseblock.tests.yml"])


def test_the_expressions_of_the_dashboard_are_valid(tmp_path: Path) -> None:
    board = json.loads((SHARE / "grafana/whoseblock.json").read_text("utf-8"))
    found = [target["expr"] for panel in board["panels"] for target in panel["targets"]]
    assert len(found) >= len(board["panels"])
    rules = [
        {"record": f"whoseblock:{number}", "expr": text.replace("$__rate_interval", "5m")}
        for number, text in enumerate(found)
    ]
    path = tmp_path / "rules.yml"
    # JSON is YAML.
    path.write_text(json.dumps({"groups": [{"name": "board", "rules": rules}]}))
    run([program("promtool"), "check", "rules", path])


def test_the_timer_is_valid() -> None:
    program("systemd-analyze")
    for name in ("whoseblock-once.service", "whoseblock-once.timer"):
        text = (SHARE / "systemd" / name).read_text("utf-8")
        assert "[Install]" in text or name.endswith(".service")
    found = subprocess.run(
        [
            "systemd-analyze",
            "verify",
            "--recursive-errors=no",
            SHARE / "systemd/whoseblock-once.timer",
        ],
        capture_output=True,
        check=False,
        text=True,
    )
    assert "whoseblock-once.timer" not in found.stderr
