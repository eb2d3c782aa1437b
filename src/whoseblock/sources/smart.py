"""The addresses that a disk itself says it cannot read, from ``smartctl --json -x``.

Names of fields as in smartmontools' ataprint.cpp, nvmeprint.cpp and scsiprint.cpp.  Addresses are
logical blocks of ``logical_block_size`` bytes, which must be there.
"""

from collections.abc import Iterator
from typing import Any, Final

from whoseblock.errors import MalformedError
from whoseblock.sources.base import Failure
from whoseblock.sources.documents import as_list, as_number, as_text, find, read_documents

__all__ = ["read_smart"]

_EXPECTED: Final = "the JSON that smartctl --json -x prints"
_LBA: Final = "a logical block address in every entry"
_BLOCK_SIZES: Final = range(512, 1 << 17)
#: Bits of the ATA error register: data that cannot be corrected, an address that is not found.
_UNC, _IDNF = 0x40, 0x10
#: What a 28-bit address reaches; the low bits of a longer one say nothing.
_LBA28_BLOCKS: Final = 1 << 28
#: The status code type of NVMe's media and data integrity errors.
_NVME_MEDIA_ERRORS: Final = 2
#: Results of self-tests that were broken off, in the upper half of the ATA status.
_ABORTED: Final = frozenset({0x1, 0x2, 0x3, 0xF})

_Place = tuple[int, str]


def read_smart(text: str, name: str) -> Iterator[Failure]:
    """Give one logical block for every address in the logs; ``name`` is the file's.

    An address that stands in several logs is given once.  Raises `MalformedError`.
    """
    for document in read_documents(text, name, _EXPECTED):
        if find(document, "smartctl") is None:
            raise MalformedError(name, None, _EXPECTED)
        places = dict(reversed([*_places(document, name)]))
        if not places:
            continue
        size = as_number(
            find(document, "logical_block_size"), name, "logical_block_size: run smartctl with -x"
        )
        if size not in _BLOCK_SIZES or size & (size - 1):
            raise MalformedError(name, None, "a logical_block_size that is a power of two")
        device = as_text(find(document, "device", "name")).rpartition("/")[2]
        for lba, log in sorted(places.items()):
            if (lba + 1) * size > 1 << 63:
                raise MalformedError(name, None, _LBA)
            yield Failure(lba * size, size, device, f"{name}, {log}")


def _places(document: Any, name: str) -> Iterator[_Place]:  # noqa: ANN401
    yield from _ata(document, name)
    yield from _nvme(document, name)
    yield from _scsi(document, name)


def _ata(document: Any, name: str) -> Iterator[_Place]:  # noqa: ANN401
    for log in ("standard", "extended"):
        for entry in as_list(find(document, "ata_smart_self_test_log", log, "table")):
            status = find(entry, "status", "value")
            if find(entry, "status", "passed") is True or find(entry, "lba") is None:
                continue
            if isinstance(status, int) and status >> 4 in _ABORTED:
                continue
            yield as_number(entry["lba"], name, _LBA), f"{log} self-test log"
    for entry in as_list(find(document, "ata_pending_defects_log", "table")):
        yield as_number(find(entry, "lba"), name, _LBA), "pending defects log"
    yield from _ata_errors(document, name)


def _ata_errors(document: Any, name: str) -> Iterator[_Place]:  # noqa: ANN401
    extended = find(document, "ata_smart_error_log", "extended", "table")
    log = "extended" if extended is not None else "summary"
    blocks = find(document, "user_capacity", "blocks")
    for entry in as_list(find(document, "ata_smart_error_log", log, "table")):
        registers = find(entry, "completion_registers")
        error = find(registers, "error")
        if not isinstance(error, int) or not error & (_UNC | _IDNF):
            continue
        lba = as_number(find(registers, "lba"), name, _LBA)
        if log == "summary":
            # The summary has 24 bits in lba and four more in the device register, and no more even
            # where the command had more.
            if not isinstance(blocks, int) or blocks > _LBA28_BLOCKS:
                continue
            device = as_number(find(registers, "device"), name, "a device register")
            lba |= (device & 0xF) << 24
        yield lba, f"{log} error log"


def _nvme(document: Any, name: str) -> Iterator[_Place]:  # noqa: ANN401
    for entry in as_list(find(document, "nvme_self_test_log", "table")):
        if find(entry, "self_test_result", "value") and find(entry, "lba") is not None:
            yield _value(find(entry, "lba"), name), "self-test log"
    for entry in as_list(find(document, "nvme_error_information_log", "table")):
        kind = find(entry, "status_field", "status_code_type")
        if kind == _NVME_MEDIA_ERRORS and find(entry, "lba") is not None:
            yield _value(find(entry, "lba"), name), "error information log"


def _scsi(document: Any, name: str) -> Iterator[_Place]:  # noqa: ANN401
    for key, log in document.items():
        if key.startswith("scsi_self_test_") and find(log, "lba_first_failure") is not None:
            yield _value(find(log, "lba_first_failure"), name), "self-test log"
        elif key == "scsi_pending_defects" and isinstance(log, dict):
            for entry in log.values():
                if (lba := find(entry, "LBA")) is not None:
                    yield as_number(lba, name, _LBA), "pending defects log"
        elif key == "scsi_background_scan" and isinstance(log, dict):
            for entry in log.values():
                if (lba := find(entry, "lba")) is not None:
                    yield as_number(lba, name, _LBA), "background scan log"


def _value(lba: Any, name: str) -> int:  # noqa: ANN401
    """Take an address as a number, or as the value of an object."""
    return as_number(lba.get("value") if isinstance(lba, dict) else lba, name, _LBA)
