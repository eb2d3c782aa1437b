"""Serve the status socket and the metrics port.

Both run in the daemon's one loop: a slow client does not delay it.
"""

import os
import re
import select
import socket
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final

from whoseblock.errors import TargetError
from whoseblock.watch.status.metrics import CONTENT_TYPE

__all__ = ["MetricsPort", "StatusSocket"]

_BACKLOG: Final = 16
_REQUEST: Final = 4096
_OLD_UMASK: Final = 0o177
_HEAD_END: Final = re.compile(rb"\r?\n\r?\n")


class StatusSocket:
    """A unix socket at ``path`` that sends ``render()`` to each client."""

    def __init__(self, path: Path, render: Callable[[], bytes]) -> None:
        self._path = path
        self._render = render
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
        """Return the descriptor that is readable when a client has connected."""
        return self._socket.fileno()

    def serve(self) -> None:
        """Answer one client."""
        with suppress(OSError):
            peer, _ = self._socket.accept()
            with peer:
                # The status fits into the socket's buffer; a rest is not worth waiting for.
                peer.settimeout(0)
                peer.send(self._render())

    def close(self) -> None:
        """Stop listening."""
        self._path.unlink(missing_ok=True)
        self._socket.close()


class MetricsPort:
    """A TCP port that serves ``render()`` by HTTP.

    ``on`` registers a function for epoll events of a descriptor, ``off`` removes it. Raises
    `TargetError` if the port is not available.
    """

    def __init__(
        self,
        address: str,
        port: int,
        render: Callable[[], bytes],
        on: Callable[[int, Callable[[], None], int], None],
        off: Callable[[int], None],
    ) -> None:
        self._render = render
        self._on = on
        self._off = off
        self._peers: dict[int, socket.socket] = {}
        #: The beginnings of requests, by descriptor.
        self._heads: dict[int, bytes] = {}
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        # As with other servers, [::] is every address of this machine.
        both = address == "::" and socket.has_dualstack_ipv6()
        try:
            self._socket = socket.create_server(
                (address, port), family=family, backlog=_BACKLOG, dualstack_ipv6=both
            )
        except OSError as error:
            raise TargetError(
                f"cannot listen on port {port} of {address}: {error.strerror}",
                hint="choose another with --metrics-port",
            ) from error
        self._socket.settimeout(0)

    @property
    def port(self) -> int:
        """The port number."""
        return int(self._socket.getsockname()[1])

    def fileno(self) -> int:
        """Return the descriptor that is readable when a client has connected."""
        return self._socket.fileno()

    def accept(self) -> None:
        """Accept a client; if too many are idle, drop the oldest."""
        with suppress(OSError):
            peer, _ = self._socket.accept()
            peer.settimeout(0)
            if len(self._peers) >= _BACKLOG:
                self._drop(next(iter(self._peers)))
            descriptor = peer.fileno()
            self._peers[descriptor] = peer
            self._on(descriptor, lambda: self._serve(descriptor), select.EPOLLIN)

    def _serve(self, descriptor: int) -> None:
        """Answer one request when its head has arrived."""
        with suppress(OSError):
            head = self._heads.get(descriptor, b"")
            piece = self._peers[descriptor].recv(_REQUEST)
            head += piece
            if piece and not _HEAD_END.search(head) and len(head) < _REQUEST:
                self._heads[descriptor] = head
                return
            if piece:
                self._send(descriptor, memoryview(self._answer(head)))
                return
        self._drop(descriptor)

    def _send(self, descriptor: int, rest: memoryview) -> None:
        """Send as much as the socket takes, and the rest when it takes more."""
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
        body = self._render()
        head = (
            f"HTTP/1.1 200 OK\r\nContent-Type: {CONTENT_TYPE}\r\n"
            f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
        ).encode()
        return head if method == b"HEAD" else head + body

    def _drop(self, descriptor: int) -> None:
        self._off(descriptor)
        self._heads.pop(descriptor, None)
        self._peers.pop(descriptor).close()

    def close(self) -> None:
        """Stop listening."""
        for descriptor in list(self._peers):
            self._drop(descriptor)
        self._socket.close()
