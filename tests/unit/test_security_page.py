"""The threat model names tests that exist."""

import re
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]


def test_every_threat_stands_beside_a_test_that_is_there() -> None:
    rows = (REPOSITORY / "docs" / "security.md").read_text().partition("## Threats")[2]
    named: list[tuple[str, str]] = []
    for row in rows.splitlines():
        path = ""
        for given, test in re.findall(r"`([\w/]*(?:\.py)?)::(\w+)`", row):
            path = given or path
            named.append((path, test))
    absent = [pair for pair in named if f"def {pair[1]}(" not in (REPOSITORY / "tests" / pair[0]).read_text()]
    assert (len(named) >= 13, absent) == (True, [])
