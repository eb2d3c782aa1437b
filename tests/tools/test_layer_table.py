"""The page of layers is that of the code."""

from tests.support.tools import CHECKOUT
from tools.layer_table import page


def test_the_page_is_up_to_date() -> None:
    written = (CHECKOUT / "docs/internals/layers.md").read_text("utf-8")
    assert written == page(), "run make layers"
