"""Where others ask the daemon how it is: a socket for ``whoseblock status``, a port for metrics.

Both are served by the daemon's one loop: nobody who is slow holds it up.
"""

import os
import select
import socket
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final

from whoseblock.errors import TargetError
from whoseblock.watch.metrics import CONTENT_TYPE

__all__ = ["MetricsPort", "StatusSocket"]

_BACKLOG: Final = 16
_REQUEST: Final = 4096
_OLD_UMASK: Final = 0o177


class StatusSocket:
    """A unix socket at ``path`` that gives ``tell()`` to whoever connects."""

    def __init__(self, path: Path, tell: Callable[[], bytes]) -> None:
        self._path = path
        self._tell = tell
        path.unlink(missing_ok=True)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        self._socket.settimeout(0)
        before = os.umask(_OLD_UMASK)
        try:
            self._socket.bind(str(path))
        except OSError as error:
            self._socket.close()
            raise TargetError(f"cannot listen at {str(path)!r}: {error}") from error
        finally:
            os.umask(before)
        self._socket.listen(_BACKLOG)

    def fileno(self) -> int:
        """Give the descriptor that is readable when somebody has connected."""
        return self._socket.fileno()

    def serve(self) -> None:
        """Answer whoever has connected."""
        with suppress(OSError):
            peer, _ = self._socket.accept()
            with peer:
                # It fits into the socket's buffer, or its rest is not worth waiting for.
                peer.settimeout(0)
                peer.send(self._tell())

    def close(self) -> None:
        """Stop listening."""
        self._path.unlink(missing_ok=True)
        self._socket.close()


class MetricsPort:
    """A TCP port that gives ``tell()`` to whoever asks for it by HTTP.

    ``on`` has a function called at events of epoll on a descriptor, ``off`` ends that.  Raises
    `TargetError` if the port cannot be had.
    """

    def __init__(
        self,
        address: str,
        port: int,
        tell: Callable[[], bytes],
        on: Callable[[int, Callable[[], None], int], None],
        off: Callable[[int], None],
    ) -> None:
        self._tell = tell
        self._on = on
        self._off = off
        self._peers: dict[int, socket.socket] = {}
        try:
            self._socket = socket.create_server((address, port), backlog=_BACKLOG)
        except OSError as error:
            raise TargetError(
                f"cannot listen on port {port} of {address}: {error.strerror}",
                hint="name another with --metrics-port",
            ) from error
        self._socket.settimeout(0)

    @property
    def port(self) -> int:
        """Say which port it is."""
        return int(self._socket.getsockname()[1])

    def fileno(self) -> int:
        """Give the descriptor that is readable when somebody has connected."""
        return self._socket.fileno()

    def accept(self) -> None:
        """Take in whoever has connected; of many that ask nothing, the first have to go."""
        with suppress(OSError):
            peer, _ = self._socket.accept()
            peer.settimeout(0)
            if len(self._peers) >= _BACKLOG:
                self._drop(next(iter(self._peers)))
            descriptor = peer.fileno()
            self._peers[descriptor] = peer
            self._on(descriptor, lambda: self._serve(descriptor), select.EPOLLIN)

    def _serve(self, descriptor: int) -> None:
        """Answer one request; its head is in one piece, or nobody's whom we serve."""
        with suppress(OSError):
            if request := self._peers[descriptor].recv(_REQUEST):
                self._send(descriptor, memoryview(self._answer(request)))
                return
        self._drop(descriptor)

    def _send(self, descriptor: int, rest: memoryview) -> None:
        """Send what there is room for; the rest when there is more."""
        with suppress(OSError):
            with suppress(BlockingIOError):
                rest = rest[self._peers[descriptor].send(rest) :]
            if rest:
                self._off(descriptor)
                self._on(descriptor, lambda: self._send(descriptor, rest), select.EPOLLOUT)
                return
        self._drop(descriptor)

    def _answer(self, request: bytes) -> bytes:
        method, _, rest = request.partition(b" ")
        path = rest.partition(b" ")[0].partition(b"?")[0]
        if method not in (b"GET", b"HEAD") or path not in (b"/", b"/metrics"):
            return b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
        body = self._tell()
        head = (
            f"HTTP/1.1 200 OK\r\nContent-Type: {CONTENT_TYPE}\r\n"
            f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
        ).encode()
        return head if method == b"HEAD" else head + body

    def _drop(self, descriptor: int) -> None:
        self._off(descriptor)
        self._peers.pop(descriptor).close()

    def close(self) -> None:
        """Stop listening."""
        for descriptor in list(self._peers):
            self._drop(descriptor)
        self._socket.close()
