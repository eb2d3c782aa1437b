"""Events of the health monitor, as the kernel writes them, and bytes that it does not write."""

import struct

from hypothesis import given
from hypothesis import strategies as st

from whoseblock.fs.xfs.mounted.health_events import (
    EVENT_BYTES,
    XFS_IOC_HEALTH_MONITOR,
    DeviceRange,
    EventDomain,
    EventKind,
    FileRange,
    HealthEvent,
    LostHealthEvents,
    monitor_request,
    read_health,
)


def event_bytes(domain: int, kind: int, time: int, body: bytes) -> bytes:
    return struct.pack("=IIQ", domain, kind, time) + body.ljust(48, b"\0")


def test_the_request_is_as_large_as_its_number_says() -> None:
    assert len(monitor_request()) == XFS_IOC_HEALTH_MONITOR >> 16 & 0x3FFF == 32
    assert monitor_request()[:9] == bytes([1, 0, 0, 0, 0, 0, 0, 0, 0])


def test_events_of_every_form() -> None:
    data = (
        event_bytes(EventDomain.DATADEV, EventKind.MEDIA_ERROR, 5, struct.pack("=QQ", 2456, 8))
        + event_bytes(
            EventDomain.FILERANGE,
            EventKind.DATALOST,
            6,
            struct.pack("=QQQII", 4096, 512, 131, 77, 5),
        )
        + event_bytes(EventDomain.MOUNT, EventKind.LOST, 7, struct.pack("=Q", 12))
        + event_bytes(EventDomain.MOUNT, EventKind.SHUTDOWN, 8, struct.pack("=I", 1))
    )
    assert read_health(data + b"half an event") == [
        HealthEvent(5, 7, 5, DeviceRange(2456 * 512, 4096)),
        HealthEvent(8, 12, 6, FileRange(4096, 512, 131, 77, 5)),
        HealthEvent(0, 1, 7, LostHealthEvents(12)),
        HealthEvent(0, 6, 8, None),
    ]


@given(st.binary(max_size=4 * EVENT_BYTES))
def test_arbitrary_events_are_parsed_or_ignored(data: bytes) -> None:
    assert len(read_health(data)) == len(data) // EVENT_BYTES
