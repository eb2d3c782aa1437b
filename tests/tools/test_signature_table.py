"""The page of signatures is that of the table."""

from tests.support.tools import CHECKOUT
from tools.signature_table import page


def test_the_page_is_up_to_date() -> None:
    written = (CHECKOUT / "docs/internals/signatures.md").read_text("utf-8")
    assert written == page(), "run make signatures"
