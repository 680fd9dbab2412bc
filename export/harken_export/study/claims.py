"""A textbook's sentence, and what was measured of it here."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Claim:
    """`found` gives the figures in words; `holds` is computed from them, never written by hand."""

    text: str
    holds: bool
    found: str

    @property
    def line(self) -> str:
        """For below a plot."""
        return f"{'holds' if self.holds else 'DOES NOT HOLD'}: {self.text} ({self.found})"
