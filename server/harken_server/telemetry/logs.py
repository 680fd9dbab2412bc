"""Log lines: events with fields, JSON unless somebody watches. No text, ids or vectors ever go into one."""

import logging
import sys
from random import random
from typing import Any, Final, Literal

import structlog

log = structlog.get_logger()

Level = Literal["debug", "info", "warning", "error"]
Logged = Literal["", "debug", "info"]
"""At which level a call has a line; empty: it has none."""


_METHODS: Final = ("debug", "info", "warning", "error", "critical")


class _Least:
    """What may be logged now. structlog's own filter is fixed for good in every logger that was ever used."""

    number = logging.INFO


def set_level(level: Level) -> None:
    """From now on less than this is not logged."""
    _Least.number = _number(level)


def _number(level: str) -> int:
    return logging.getLevelNamesMapping()[level.upper()]


def _filtered(method: str) -> Any:
    number, of_structlog = _number(method), getattr(_EveryLevel, method)

    def log(self: Any, event: str, *arguments: Any, **fields: Any) -> Any:
        return of_structlog(self, event, *arguments, **fields) if number >= _Least.number else None

    return log


_EveryLevel: Final = structlog.make_filtering_bound_logger(logging.DEBUG)
_Logger: Final = type("_Logger", (_EveryLevel,), {method: _filtered(method) for method in _METHODS})


def configure(level: Level, form: Literal["auto", "json", "console"]) -> None:
    """Set up structlog for the process, on stderr."""
    set_level(level)
    console = form == "console" or (form == "auto" and sys.stderr.isatty())
    renderer: structlog.typing.Processor = (
        structlog.dev.ConsoleRenderer() if console else structlog.processors.JSONRenderer()
    )
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            renderer,
        ],
        wrapper_class=_Logger,
        logger_factory=structlog.WriteLoggerFactory(file=sys.stderr),
        cache_logger_on_first_use=True,
    )


class AccessLog:
    """Which calls have a line of their own when they end, and what is in it."""

    def __init__(self, ratio: float) -> None:
        """`ratio`: the share of the calls that is logged at info. At debug all are."""
        self._ratio: Final = ratio

    def draw(self) -> Logged:
        """Whether the next call has a line, as far as its level is logged now."""
        least = _Least.number
        if self._ratio and least <= logging.INFO and random() < self._ratio:  # noqa: S311 - guards nothing
            return "info"
        return "debug" if least <= logging.DEBUG else ""

    def write(self, logged: Logged, **fields: Any) -> None:
        """A call ended."""
        (log.info if logged == "info" else log.debug)("call", **fields)


NO_ACCESS_LOG: Final = AccessLog(0.0)
