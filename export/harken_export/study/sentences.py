"""The English ones of the certificate's sentences, and one whose words come twice."""

from importlib import resources

EXAMPLE = "The old dog chased the young cat, and the young cat chased the old dog."


def english() -> list[str]:
    """Prose in one language: what the real model was trained for."""
    text = resources.files("harken_export").joinpath("certificate_sentences.txt").read_text(encoding="utf-8")
    prose, _, _ = text.partition("## Other languages")
    return [line for line in prose.splitlines() if line and not line.startswith("## ")]
