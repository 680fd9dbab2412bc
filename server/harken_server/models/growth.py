"""How much longer a tokenizer.json may make a text, and how long it may take: read before anything is made of it.

What the library does with a text it does in one piece, and nobody can stop it: four replacements of a character by a
thousand others ask for terabytes, and the process ends. So does one in whose vocabulary a word has a hundred thousand
characters, when the tree that the library makes of it is let go.
"""

import base64
import binascii
import json
import re
from collections.abc import Iterator, Sequence
from math import prod
from typing import Any, Final, cast

from harken_server.models.bundle import BundleError

MOST: Final = 10
"""A text becomes at most so many times as long, beside what Unicode's own forms do to it. Each character may become a
piece, and a piece takes some 200 bytes."""

MOST_STEPS: Final = 16
"""Normalizers and pre-tokenizers, in all: even one that keeps Unicode's forms may add spaces each time."""

WORD_CHARACTERS: Final = 200
"""WordPiece tries all pieces of a word, so its time grows with the cube of the longest one that it looks at."""

MARK_CHARACTERS: Final = 64
"""Of what the model puts before or behind the pieces of a word, each time it looks one up."""

TOKEN_CHARACTERS: Final = 1024
"""Of a token of the vocabulary. The library makes a tree of it as deep as the token is long."""

_SAME_LENGTH: Final = {
    # Unicode's forms make of one character at most _UNICODE, once.
    "BertNormalizer", "Strip", "StripAccents", "NFC", "NFD", "NFKC", "NFKD", "Lowercase", "Nmt",
    "BertPreTokenizer", "CharDelimiterSplit", "Delimiter", "Digits", "FixedLength", "Punctuation", "Split",
    "UnicodeScripts", "Whitespace", "WhitespaceSplit",
}  # fmt: skip
_UNICODE: Final = 18
# A character, a class or an escape, once or more often: what matches nothing at all is none of these.
_SOMETHING: Final = re.compile(
    r"(?:[^\\*?+|()\[\]{}^$]|\\[sSwWdDnrt.\\-]|\[(?:\\.|[^\\\]])+\])(?:\+|\{[1-9]\d*(?:,\d*)?\})?", re.DOTALL
)
# A character has at most 4 bytes, each of which becomes one, and a space may come before them.
_BYTE_LEVEL: Final = 5
# A mark before each piece, which may be one character.
_METASPACE: Final = 2

_PROCESSORS: Final = {"BertProcessing", "RobertaProcessing", "ByteLevel"}


def check_growth(content: bytes) -> None:
    """Raises BundleError if this tokenizer.json is none, or may make texts longer, or take longer, than is good."""
    try:
        tokenizer = json.loads(content.decode(), object_pairs_hook=_unique)
        steps = [
            *_steps(tokenizer.get("normalizer"), "normalizers"),
            *_steps(tokenizer.get("pre_tokenizer"), "pretokenizers"),
        ]
        growth = prod(_growth(step) for step in steps)
        copies = _copies(tokenizer.get("post_processor"))
        sizes = list(_sizes(tokenizer["model"], tokenizer.get("added_tokens") or []))
        dropout = tokenizer["model"].get("dropout")
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise BundleError(f"tokenizer.json: is none that this server can check: {error!r}") from error
    if len(steps) > MOST_STEPS:
        raise BundleError(
            f"tokenizer.json: has {len(steps)} normalizers and pre-tokenizers; at most {MOST_STEPS} are served"
        )
    if growth > MOST:
        raise BundleError(f"tokenizer.json: may make a text {growth} times as long; at most {MOST} times is served")
    if copies != 1:
        raise BundleError(f"tokenizer.json: its post-processor takes the text {copies} times, not once")
    for what, size, most in sizes:
        if size > most:
            raise BundleError(f"tokenizer.json: {what} is {size}; at most {most} is served")
    if dropout:
        raise BundleError(f"tokenizer.json: dropout is {dropout}: the same text would become other tokens each time")


def _unique(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """What stands twice, the library might read otherwise than we do."""
    made = dict(pairs)
    if len(made) < len(pairs):
        raise ValueError("an object has a key twice")
    return made


def _steps(step: dict[str, Any] | None, parts: str) -> list[dict[str, Any]]:
    """The normalizers or pre-tokenizers one by one; `parts`: how the file calls those of a sequence."""
    if step is None:
        return []
    if step["type"] != "Sequence":
        return [step]
    return [one for part in step[parts] for one in _steps(part, parts)]


def _sizes(model: dict[str, Any], added: Sequence[dict[str, Any]]) -> Iterator[tuple[str, int, int]]:
    """What they are, how large they are and may be."""
    yield "max_input_chars_per_word", model.get("max_input_chars_per_word") or 0, WORD_CHARACTERS
    for mark in ("continuing_subword_prefix", "end_of_word_suffix"):
        yield f"the length of {mark}", len(model.get(mark) or ""), MARK_CHARACTERS
    # Unigram has pairs of a token and its score.
    vocabulary = model["vocab"]
    tokens = vocabulary if isinstance(vocabulary, dict) else [token for token, _ in vocabulary]
    longest = max((len(token) for token in (*tokens, *(one["content"] for one in added))), default=0)
    yield "the length of its longest token", longest, TOKEN_CHARACTERS


def _growth(step: dict[str, Any]) -> int:
    kind = step["type"]
    if kind in _SAME_LENGTH:
        return 1
    if kind == "ByteLevel":
        return _BYTE_LEVEL
    if kind == "Metaspace":
        return _METASPACE
    if kind == "Prepend":
        return 1 + len(step["prepend"])
    if kind == "Replace":
        pattern = step["pattern"]
        replaced = len(step["content"])
        # Most expressions may match between all characters, and at both ends.
        found = len(pattern["String"]) if "String" in pattern else bool(_SOMETHING.fullmatch(pattern["Regex"]))
        return max(1, -(-replaced // found)) if found else 1 + 2 * replaced
    if kind == "Precompiled":
        longest = _longest(step["precompiled_charsmap"])
        return longest if longest > _UNICODE else 1
    raise ValueError(f"{kind!r} is not known")


def _longest(charsmap: str | None) -> int:
    """The longest text that sentencepiece's table puts in place of one character.

    It is the size of a trie in 4 bytes, the trie, and the texts, each ended by a zero (sentencepiece, normalizer.cc).
    """
    try:
        table = base64.b64decode(charsmap or "", validate=True)
    except binascii.Error as error:
        raise ValueError("precompiled_charsmap is not base64") from error
    texts = table[4 + int.from_bytes(table[:4], "little") :]
    return max([1, *(len(text.decode(errors="replace")) for text in texts.split(b"\0"))])


def _copies(processor: dict[str, Any] | None) -> int:
    """How often a text stands in what a post-processor makes of it."""
    if processor is None or processor["type"] in _PROCESSORS:
        return 1
    if processor["type"] == "Sequence":
        return prod(_copies(part) for part in processor["processors"])
    if processor["type"] == "TemplateProcessing":
        return sum("Sequence" in cast(dict[str, Any], piece) for piece in processor["single"])
    raise ValueError(f"{processor['type']!r} is not known")
