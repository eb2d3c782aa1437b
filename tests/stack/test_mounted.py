"""Devices in use as the external log or the realtime section of a mounted filesystem."""

from pathlib import Path

import pytest
from tests.support.commands import lookup
from tests.support.machine_snapshots import facts, unpacked

from whoseblock.fs.registry import companion_mount_options
from whoseblock.stack.kernel.host import Host
from whoseblock.stack.mounted import companion_devices


def test_mounts_name_external_logs_and_realtime_sections(session_folder: Path) -> None:
    known = facts("disk")
    found = {
        (one.data, one.role, one.device)
        for one in companion_devices(
            Host(unpacked("disk", session_folder)), companion_mount_options()
        )
    }
    assert found == {
        (known["data"], "log", known["log"]),
        (known["data"], "realtime", known["realtime"]),
    }


@pytest.mark.parametrize("role", ["log", "realtime"])
def test_a_device_in_such_use_is_not_opened_as_a_filesystem(
    role: str, session_folder: Path
) -> None:
    known = facts("disk")
    log = session_folder / f"{role}.dmesg"
    log.write_text(f"I/O error, dev {known[role]}, sector 8\n")
    root = unpacked("disk", session_folder)
    (answer,) = lookup("--dmesg", log, "--root", root)
    assert [row["kind"] for row in answer["owners"]] == ["unknown"]
    assert f"{role} device of the filesystem on {known['data']}" in " ".join(answer["notes"])
