"""Every seed of the fuzzers, and all that they ever found, replayed."""

from pathlib import Path

import pytest
from fuzz.targets import TARGETS

SEEDS = Path(__file__).parent / "seeds"
FILES = sorted(path for path in SEEDS.glob("*/*") if path.is_file())


@pytest.mark.parametrize("path", FILES, ids=[f"{path.parent.name}/{path.name}" for path in FILES])
def test_it_finds_no_bug(path: Path) -> None:
    TARGETS[path.parent.name](path.read_bytes())


def test_every_target_has_seeds_and_takes_an_empty_file() -> None:
    assert {path.parent.name for path in FILES} == set(TARGETS)
    for target in TARGETS.values():
        target(b"")
