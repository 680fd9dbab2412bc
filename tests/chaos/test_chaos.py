"""The short form of `make chaos`."""

from pathlib import Path

import pytest
from chaos import run


@pytest.mark.timeout(280)
def test_every_promise_is_kept_in_the_short_form(tmp_path: Path) -> None:
    for row in run.rows(tmp_path, tmp_path, short=True, seed=1):
        assert row.kept, row
