"""Parse the unreadable addresses that a disk logs, from ``smartctl --json -x``.

Names of fields as in smartmontools' ataprint.cpp, nvmeprint.cpp and scsiprint.cpp. Addresses are
logical blocks of ``logical_block_size`` bytes, which is a required field.
"""

import re
from collections.abc import Iterator
from typing import Any, Final, NamedTuple

from whoseblock.sources.base import MAX_OFFSET, Failure, Reading, quote
from whoseblock.sources.programs.documents import Documents, as_list, as_text, find, read_documents

__all__ = ["read_smart"]

_EXPECTED: Final = "the JSON that smartctl --json -x prints"
_LBA: Final = "a logical block address in every entry"
#: Limit on the name of a device, in characters (NAME_MAX).
_MAX_NAME: Final = 255
_BLOCK_SIZES: Final = range(512, 1 << 17)
#: Uncorrectable data, or an address that was not found. The meaning of the bits of the error
#: register depends on the command; smartctl prints it. Only reads and writes have an address.
_LOST: Final = re.compile(r"Error: .*\b(?:UNC|IDNF)\b.* at LBA = ", re.ASCII)
_LOST_WORDS: Final = re.compile(r"Error: .*\b(?:UNC|IDNF)\b", re.ASCII)
#: The logs whose entries may name an address.
_LOGS: Final = (
    "ata_smart_self_test_log",
    "ata_pending_defects_log",
    "ata_smart_error_log",
    "nvme_self_test_log",
    "nvme_error_information_log",
    "scsi_self_test_",
    "scsi_pending_defects",
    "scsi_background_scan",
)
#: The options of smartctl that print every log.
_ALL_LOGS: Final = re.compile(r"-[a-zA-Z]*x|--xall", re.ASCII)
#: The attributes that count pending and uncorrectable sectors.
_PENDING: Final = (197, 198)
_MAX_COUNT: Final = 1 << 62
#: The values of an unknown address: all ones, in 48 or 64 bits.
_NO_LBA: Final = frozenset({(1 << 48) - 1, (1 << 64) - 1})
#: The number of blocks of 28-bit addresses; longer addresses are truncated.
_LBA28_BLOCKS: Final = 1 << 28
#: The number of blocks of the 32-bit addresses of the standard self-test log.
_LBA32_BLOCKS: Final = 1 << 32
#: The status code type of NVMe's media and data integrity errors, and its codes for data that were
#: not written, not read, or failed a check.
_NVME_MEDIA_ERRORS: Final = 2
_NVME_LOST: Final = range(0x80, 0x85)
#: Results of NVMe and SCSI self-tests that ended with a failure and were not aborted.
_NVME_FAILED: Final = range(0x5, 0x8)
_SCSI_FAILED: Final = range(0x3, 0x8)
#: Results of self-tests that failed, in the upper half of the ATA status.
_ATA_FAILED: Final = range(0x3, 0x9)

#: The SCSI sense key of a medium error; a background scan also reports corrected errors.
_MEDIUM_ERROR: Final = 0x3

#: The device types of smartctl(8) for disks behind a controller.
_CONTROLLER_TYPES: Final = re.compile(
    r"3ware|aacraid|areca|cciss|hpt|intelliprop|jmb39x|jms56x|megaraid|sssraid", re.ASCII
)


class _LoggedAddress(NamedTuple):
    """A logical block address, the log that names it, and its place: steps from an object."""

    lba: int
    log: str
    entry: dict[str, Any]
    steps: tuple[str | int, ...]


def read_smart(text: str, name: str, reading: Reading | None = None) -> Iterator[Failure]:
    """Yield one logical block for every address in the logs; ``name`` is the file in messages.

    An address in several logs is yielded once. ``reading`` counts the entries of all logs. Raises
    `MalformedError`.
    """
    reading = reading or Reading(name)
    reading.unit, reading.units = "log entry", "log entries"
    documents = read_documents(text, name, _EXPECTED)
    for document in documents.values:
        if find(document, "smartctl") is None:
            raise documents.error(_EXPECTED, document, "smartctl")
        _count_entries(document, reading)
        logged: dict[int, _LoggedAddress] = {}
        for one in _find_addresses(document, documents):
            if one.lba not in _NO_LBA:
                logged.setdefault(one.lba, one)
        if not logged:
            if (counted := _find_counter(document)) is not None:
                reading.remarks.append(counted)
            continue
        wanted = "logical_block_size: run smartctl with -x"
        size = documents.number(document, "logical_block_size", expected=wanted)
        if size not in _BLOCK_SIZES or size & (size - 1):
            wanted = "a logical_block_size that is a power of two"
            raise documents.error(wanted, document, "logical_block_size")
        device = _find_device(document, documents)
        for lba, one in sorted(logged.items()):
            if (lba + 1) * size > MAX_OFFSET:
                raise documents.error(_LBA, one.entry, *one.steps)
            reading.failures += 1
            yield Failure(lba * size, size, device, f"{name}, {one.log}")


def _count_entries(document: Any, reading: Reading) -> None:  # noqa: ANN401
    """Count the entries of the logs, and the errors among them without a usable address."""
    logs = [key for key in document if key.startswith(_LOGS)]
    if not logs:
        reading.remarks.append("it holds no error, self-test or defect log: run smartctl with -x")
    elif (missing := _find_missing(document)) is not None:
        reading.remarks.append(missing)
    for key in logs:
        for log in _iterate_tables(document[key]):
            for entry in log:
                reading.read += 1
                if (text := _describe_without_address(key, entry)) is not None:
                    reading.count_unrecognised(key, text)


def _find_missing(document: Any) -> str | None:  # noqa: ANN401
    """Return a remark if smartctl did not print the logs with whole addresses."""
    arguments = [as_text(one) for one in as_list(find(document, "smartctl", "argv"))]
    if not arguments or any(_ALL_LOGS.fullmatch(one) for one in arguments):
        return None
    if any(key.startswith("ata_") for key in document):
        extended = find(document, "ata_smart_error_log", "extended")
        if extended is None and "ata_pending_defects_log" not in document:
            return "it lacks the extended error log and the pending defects: run smartctl with -x"
    elif any(key.startswith("nvme_") for key in document):
        if "nvme_self_test_log" not in document or "nvme_error_information_log" not in document:
            return "it lacks a log of errors or self-tests: run smartctl with -x"
    elif "scsi_background_scan" not in document:
        return "it lacks the log of background scans: run smartctl with -x"
    return None


def _find_counter(document: Any) -> str | None:  # noqa: ANN401
    """Return a remark about the disk's own number of bad sectors, which has no addresses."""
    count = find(document, "nvme_smart_health_information_log", "media_errors")
    if isinstance(count, int) and count > 0:
        return f"the disk counts {min(count, _MAX_COUNT)} media errors, and no log names one"
    for entry in as_list(find(document, "ata_smart_attributes", "table")):
        raw = find(entry, "raw", "value")
        # The lower 32 bits; some disks have other counters above.
        if find(entry, "id") in _PENDING and isinstance(raw, int) and raw & 0xFFFFFFFF:
            name = as_text(find(entry, "name"))[:32]
            return f"the disk counts {raw & 0xFFFFFFFF} sectors in {name}, and no log names one"
    return None


def _iterate_tables(log: Any) -> Iterator[list[Any]]:  # noqa: ANN401
    """Yield every list of entries in a log: ATA's are grouped, SCSI's may stand alone."""
    if not isinstance(log, dict):
        return
    if "table" in log:
        yield as_list(log["table"])
        return
    if "result" in log:
        yield [log]
    below = [value for value in log.values() if isinstance(value, dict)]
    yield from (as_list(value["table"]) for value in below if "table" in value)
    yield [value for key, value in log.items() if key.startswith("result_")]


def _describe_without_address(key: str, entry: Any) -> str | None:  # noqa: ANN401
    """Return the text of an entry with lost data but no address, None for others."""
    described = as_text(find(entry, "error_description"))
    if _LOST_WORDS.match(described) and not _LOST.match(described):
        return described
    status, result = find(entry, "status", "value"), find(entry, "self_test_result", "value")
    if find(entry, "lba") is None and (
        (key.startswith("ata_") and isinstance(status, int) and status >> 4 in _ATA_FAILED)
        or (key.startswith("nvme_") and _is_in(result, _NVME_FAILED))
    ):
        path = ("status", "string") if key.startswith("ata_") else ("self_test_result", "string")
        return as_text(find(entry, *path)) or "a self-test that failed"
    if (
        key.startswith("scsi_self_test_")
        and _is_in(find(entry, "result", "value"), _SCSI_FAILED)
        and find(entry, "lba_first_failure") is None
    ):
        return as_text(find(entry, "result", "string")) or "a self-test that failed"
    return None


def _find_device(document: Any, documents: Documents) -> str:  # noqa: ANN401
    """Return the kernel's name of the disk, or a name that no disk has for one behind a controller.

    In the latter case, smartctl was run on the controller, or on one of its volumes.
    """
    if _CONTROLLER_TYPES.search(as_text(find(document, "device", "type"))):
        key = "info_name"
        device = as_text(find(document, "device", key)).removeprefix("/dev/")
    else:
        key = "name"
        device = as_text(find(document, "device", key)).rpartition("/")[2]
    if len(device) > _MAX_NAME:
        raise documents.error(f"a name of a device, not {quote(device)}", document, "device", key)
    return device


def _find_addresses(document: Any, documents: Documents) -> Iterator[_LoggedAddress]:  # noqa: ANN401
    yield from _find_ata_addresses(document, documents)
    yield from _find_nvme_addresses(document, documents)
    yield from _find_scsi_addresses(document, documents)


def _find_ata_addresses(document: Any, documents: Documents) -> Iterator[_LoggedAddress]:  # noqa: ANN401
    blocks = find(document, "user_capacity", "blocks")
    for log in ("extended", "standard"):
        if log == "standard" and isinstance(blocks, int) and blocks > _LBA32_BLOCKS:
            continue
        for entry in as_list(find(document, "ata_smart_self_test_log", log, "table")):
            status, lba = find(entry, "status", "value"), find(entry, "lba")
            # smartctl omits the address of a failed test if it is unknown.
            if isinstance(status, int) and status >> 4 in _ATA_FAILED and lba is not None:
                yield _parse_address(documents, f"{log} self-test log", entry, "lba")
    pending = find(document, "ata_pending_defects_log")
    for index in range(len(as_list(find(pending, "table")))):
        yield _parse_address(documents, "pending defects log", pending, "table", index, "lba")
    yield from _find_ata_error_addresses(document, documents)


def _find_ata_error_addresses(document: Any, documents: Documents) -> Iterator[_LoggedAddress]:  # noqa: ANN401
    extended = find(document, "ata_smart_error_log", "extended", "table")
    log = "extended" if extended is not None else "summary"
    blocks = find(document, "user_capacity", "blocks")
    if log == "summary" and not (isinstance(blocks, int) and blocks <= _LBA28_BLOCKS):
        # The summary has 28 bits of the address, even for longer addresses.
        return
    for entry in as_list(find(document, "ata_smart_error_log", log, "table")):
        if not _LOST.match(as_text(find(entry, "error_description"))):
            continue
        steps = ("completion_registers", "lba")
        lba = documents.number(entry, *steps, expected=_LBA)
        # 28-bit commands have the upper four bits in the device register, others have zeros there.
        device = documents.number(
            entry, "completion_registers", "device", expected="a device register"
        )
        yield _LoggedAddress(lba | (device & 0xF) << 24, f"{log} error log", entry, steps)


def _find_nvme_addresses(document: Any, documents: Documents) -> Iterator[_LoggedAddress]:  # noqa: ANN401
    # The logs are those of the controller for all namespaces, but the block size is of one.
    namespaces = [find(one, "id") for one in as_list(find(document, "nvme_namespaces"))]
    for entry in as_list(find(document, "nvme_self_test_log", "table")):
        result, lba = find(entry, "self_test_result", "value"), find(entry, "lba")
        if _is_in(result, _NVME_FAILED) and lba is not None and _is_in_namespace(entry, namespaces):
            yield _parse_address(documents, "self-test log", entry, "lba")
    for entry in as_list(find(document, "nvme_error_information_log", "table")):
        status, lba = find(entry, "status_field"), find(entry, "lba")
        if (
            find(status, "status_code_type") == _NVME_MEDIA_ERRORS
            and _is_in(find(status, "status_code"), _NVME_LOST)
            and lba is not None
            and _is_in_namespace(entry, namespaces)
        ):
            yield _parse_address(documents, "error information log", entry, "lba")


def _is_in(value: Any, numbers: range) -> bool:  # noqa: ANN401
    return isinstance(value, int) and value in numbers


def _is_in_namespace(entry: Any, namespaces: list[Any]) -> bool:  # noqa: ANN401
    """Return whether an entry is of the only namespace in the document."""
    return len(namespaces) == 1 and find(entry, "nsid") == namespaces[0]


def _find_scsi_addresses(document: Any, documents: Documents) -> Iterator[_LoggedAddress]:  # noqa: ANN401
    for key, log in document.items():
        if key.startswith("scsi_self_test_"):
            lba = find(log, "lba_first_failure")
            if _is_in(find(log, "result", "value"), _SCSI_FAILED) and lba is not None:
                yield _parse_address(documents, "self-test log", log, "lba_first_failure")
        elif key == "scsi_pending_defects":
            # The index is the parameter code, which starts at 1: the first element is null.
            for index, entry in enumerate(as_list(find(log, "table"))):
                if entry is not None:
                    steps = ("table", index, "lba")
                    yield _parse_address(documents, "pending defects log", log, *steps)
        elif key == "scsi_background_scan" and isinstance(log, dict):
            for result, entry in log.items():
                lba = find(entry, "lba")
                sense = find(entry, "sense_key", "value")
                if result.startswith("result_") and lba is not None and sense == _MEDIUM_ERROR:
                    yield _parse_address(documents, "background scan log", entry, "lba")


def _parse_address(
    documents: Documents, log: str, entry: dict[str, Any], *steps: str | int
) -> _LoggedAddress:
    """Parse an address that is a number, or an object with a value; ``log`` names it."""
    value = find(entry, *steps)
    if isinstance(value, dict):
        value, steps = value.get("value"), (*steps, "value")
    if not (isinstance(value, int) and value in _NO_LBA):
        value = documents.number(entry, *steps, expected=_LBA)
    return _LoggedAddress(value, log, entry, steps)
