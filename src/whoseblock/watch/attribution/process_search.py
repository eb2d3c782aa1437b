"""Search the processes that use lost data, after the owners are journaled.

A machine may have thousands of processes, and looking into all of them takes seconds. So a child
searches, while the worker processes further failures. One search serves all failures that wait.
"""

import os
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from typing import Final, NamedTuple

from msgspec.structs import replace

from whoseblock.closing import Closing
from whoseblock.fs.base import Answer, FileOwner, Owner, distinct
from whoseblock.querying import FileDevices, find_users
from whoseblock.watch.children import STANDARD, end_child, fork
from whoseblock.watch.store.state import StateFolder

__all__ = ["Devices", "ProcessSearch", "SearchLimits", "may_have_users"]

_NICE: Final = 5
#: By the name of a layer, the numbers under which files of its filesystem appear.
Devices = Mapping[str, FileDevices]


class SearchLimits(NamedTuple):
    """The seconds after which no further process is looked into, and the child is abandoned."""

    search_s: float = 10.0
    answer_s: float = 20.0


USUAL_LIMITS: Final = SearchLimits()


class ProcessSearch(Closing):
    """One search at a time, in a child that is kept for the next one."""

    def __init__(self, state: StateFolder, limits: SearchLimits = USUAL_LIMITS) -> None:
        self._state = state
        self._limits = limits
        self._child: tuple[int, Connection] | None = None
        self._asked: list[Answer] = []
        self._deadline = 0.0

    @property
    def is_running(self) -> bool:
        """Whether a search was started and not collected."""
        return bool(self._asked)

    def fileno(self) -> int:
        """Return a descriptor that becomes readable with the result, -1 if there is no search."""
        return self._child[1].fileno() if self._child is not None and self._asked else -1

    def start(self, questions: Sequence[tuple[Answer, Devices]]) -> None:
        """Start to search the processes that use files of these answers."""
        self._asked = [answer for answer, _ in questions]
        self._deadline = time.monotonic() + self._limits.answer_s
        if self._child is None:
            self._child = self._start()
        # `collect` finds out that it has died.
        with suppress(BrokenPipeError, ConnectionResetError):
            self._child[1].send(questions)

    def collect(self, *, wait: bool = False) -> list[Answer] | None:
        """Return the answers with their processes, None if the search still runs.

        If ``wait``, wait for them. Where a search failed, a note of the answer says why.
        """
        if self._child is None or not self._asked:
            return None
        pid, connection = self._child
        left = max(self._deadline - time.monotonic(), 0)
        try:
            if connection.poll(left if wait else 0):
                found: list[Answer] = connection.recv()
                self._asked = []
                return found
        except (EOFError, ConnectionResetError):
            why = "the search for processes died"
        else:
            if left and not wait:
                return None
            why = "the search for processes does not answer"
        connection.close()
        end_child(pid)
        self._child = None
        asked, self._asked = self._asked, []
        return [_with_notes(answer, [why]) for answer in asked]

    def _start(self) -> tuple[int, Connection]:
        ours, theirs = Pipe()
        seconds = self._limits.search_s

        def body() -> int:
            # Owners of further failures come first. The unit permits no change of priorities.
            with suppress(PermissionError):
                os.nice(_NICE)
            while True:
                try:
                    questions = theirs.recv()
                except EOFError:
                    return 0
                theirs.send(_search(questions, seconds))

        pid = fork("search", body, (*STANDARD, theirs.fileno()), self._state.lock)
        theirs.close()
        return pid, ours

    def close(self) -> None:
        """End the child."""
        if self._child is not None:
            pid, connection = self._child
            connection.close()
            end_child(pid)
            self._child = None


def _search(questions: Sequence[tuple[Answer, Devices]], seconds: float) -> list[Answer]:
    """Return the answers with the processes that use their files."""
    wanted = [
        (row, devices[_layer_of(row)])
        for answer, devices in questions
        for row in answer
        if isinstance(row, FileOwner) and _layer_of(row) in devices
    ]
    try:
        users, notes = find_users(wanted, seconds)
    except OSError as error:
        return [_with_notes(one, [f"/proc cannot be searched: {error}"]) for one, _ in questions]
    found = []
    for one, devices in questions:
        owners = tuple(
            replace(row, processes=next(users))
            if isinstance(row, FileOwner) and _layer_of(row) in devices
            else row
            for row in one
        )
        found.append(_with_notes(replace(one, owners=owners), notes))
    return found


def _layer_of(row: Owner) -> str:
    """Return the layer of the filesystem of a file, "" for another owner."""
    if isinstance(row, FileOwner) and isinstance(row.via, tuple) and row.via:
        return row.via[-1].layer
    return ""


def may_have_users(answer: Answer, devices: Devices) -> bool:
    """Return whether a process may use a file of an answer: its filesystem is mounted."""
    return any(_layer_of(row) in devices for row in answer)


def _with_notes(answer: Answer, notes: Sequence[str]) -> Answer:
    """Add notes that leave an answer as complete as it is: the owners are known."""
    if not notes:
        return answer
    remarks = answer.remarks
    if not answer.complete:
        remarks = distinct([*(remarks or ()), *notes])
    return replace(answer, notes=distinct([*answer.notes, *notes]), remarks=remarks)
