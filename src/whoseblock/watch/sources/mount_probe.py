"""Probe filesystems that may never answer, because a server or a disk hangs.

A child probes them, so that the daemon can abandon it. Not even SIGKILL ends a child that is stuck;
its filesystem is not probed again before the child has ended.
"""

import errno
import os
import signal
import socket
from collections.abc import Callable, Collection, Iterable
from typing import Final

from whoseblock.watch.children import fork
from whoseblock.watch.sources.mounts import MountedFilesystem

__all__ = ["MountProbe", "ProbeFunction", "ProbeResult"]

#: The result of a probe: some bytes, and descriptors.
ProbeResult = tuple[bytes, tuple[int, ...]]
#: Probes one filesystem; raises OSError.
ProbeFunction = Callable[[MountedFilesystem], ProbeResult]

#: Seconds to wait for an answer; the daemon's loop stands still meanwhile.
_TIMEOUT_S: Final = 2.0
_LONGEST: Final = 4096
_MOST_DESCRIPTORS: Final = 4
_ERRNO_BYTES: Final = 4


class MountProbe:
    """Probes filesystems, and remembers which of them hang."""

    def __init__(self, patience: float = _TIMEOUT_S) -> None:
        self._patience = patience
        #: The stuck children, by device number.
        self._hanging: dict[int, int] = {}

    def probe(
        self,
        about: Iterable[MountedFilesystem],
        question: ProbeFunction,
        keep: Collection[int] = (),
    ) -> list[tuple[MountedFilesystem, ProbeResult | OSError]]:
        """Probe each filesystem; the children have only the descriptors ``keep``."""
        self._hanging = {
            device: pid
            for device, pid in self._hanging.items()
            if os.waitpid(pid, os.WNOHANG)[0] == 0
        }
        results: list[tuple[MountedFilesystem, ProbeResult | OSError]] = []
        left = list(about)
        while left:
            if left[0].device in self._hanging:
                results.append((left.pop(0), OSError(errno.ETIMEDOUT, "no answer")))
                continue
            some = [one for one in left if one.device not in self._hanging]
            answers = self._probe_in_child(some, question, keep)
            results += zip(some, answers, strict=False)
            asked = some[: len(answers)]
            left = [one for one in left if one not in asked]
        return results

    def _probe_in_child(
        self, about: list[MountedFilesystem], question: ProbeFunction, keep: Collection[int]
    ) -> list[ProbeResult | OSError]:
        """Probe all in one child; return the results up to the first that hangs."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with ours:
            with theirs:
                # A stuck child must not hold our standard error open.
                keeps = (theirs.fileno(), *keep)
                pid = fork("mounts", lambda: _probe_all(about, question, theirs), keeps)
            ours.settimeout(self._patience)
            answers: list[ProbeResult | OSError] = []
            for one in about:
                try:
                    data, descriptors, _, _ = socket.recv_fds(ours, _LONGEST, _MOST_DESCRIPTORS)
                except TimeoutError:
                    os.kill(pid, signal.SIGKILL)
                    self._hanging[one.device] = pid
                    return answers
                answers.append(_decode_result(data, descriptors))
        os.waitpid(pid, 0)
        return answers


def _decode_result(data: bytes, descriptors: Collection[int]) -> ProbeResult | OSError:
    if not data:
        return OSError(errno.EIO, "the probing process ended")
    for descriptor in descriptors:
        # Descriptors that arrive through a socket are inheritable, whatever flags recv_fds is
        # given.
        os.set_inheritable(descriptor, False)  # noqa: FBT003 - it takes no keywords
    number = int.from_bytes(data[:_ERRNO_BYTES])
    rest = data[_ERRNO_BYTES:]
    return OSError(number, rest.decode()) if number else (rest, tuple(descriptors))


def _probe_all(
    about: Iterable[MountedFilesystem], question: ProbeFunction, to: socket.socket
) -> int:
    """Probe the filesystems, and send each result."""
    for mounted in about:
        try:
            data, descriptors = question(mounted)
            message = bytes(_ERRNO_BYTES) + data
        except OSError as error:
            descriptors = ()
            number = error.errno or errno.EIO
            message = number.to_bytes(_ERRNO_BYTES) + (error.strerror or str(error)).encode()
        socket.send_fds(to, [message], descriptors)
        for descriptor in descriptors:
            os.close(descriptor)
    return 0
