"""Fixtures of the tests that need the kernel's log to themselves."""

from collections.abc import Iterator

import pytest
from tests.support.failing_disk import traced


@pytest.fixture
def tracing() -> Iterator[None]:
    """Mount tracefs at its usual place."""
    with traced():
        yield
