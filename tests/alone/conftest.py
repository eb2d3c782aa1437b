"""What the tests share that need the kernel's log to themselves."""

from collections.abc import Iterator

import pytest
from tests.support.failing_disk import traced


@pytest.fixture
def tracing() -> Iterator[None]:
    """Have tracefs where everybody looks for it."""
    with traced():
        yield
