"""A sample of the fuzzing of every form."""

import pytest
from tools.fuzz_forms import FORMS, fuzz


@pytest.mark.parametrize("form", FORMS)
def test_a_damaged_report_is_parsed_or_refused(form: str) -> None:
    inputs = 20 if form == "rasdaemon" else 150
    assert 0 <= fuzz(form, inputs, 7) <= inputs
