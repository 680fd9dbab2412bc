"""The table at the end of `make deploy-check`."""

from collections.abc import Generator

import pytest
from rich.console import Console
from rich.table import Table

_LINES: list[tuple[str, str, str]] = []


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Keep a line for the table: the sentence that the test's name is, how it ended, what it put into `found`."""
    report = yield
    if report.when == "call" or (report.when == "setup" and not report.passed):
        found = "; ".join(str(value) for key, value in item.user_properties if key == "found")
        if report.skipped and isinstance(report.longrepr, tuple):
            found = report.longrepr[2].removeprefix("Skipped: ")
        _LINES.append((item.name.removeprefix("test_").replace("_", " "), report.outcome, found))
    return report


def pytest_terminal_summary() -> None:
    """Print it."""
    table = Table("what holds", "", "found", title="make deploy-check")
    for line in _LINES:
        table.add_row(*line)
    Console(width=160).print(table)
