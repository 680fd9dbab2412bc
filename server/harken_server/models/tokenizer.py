"""Text to token ids, off the event loop, with a bound on the work that one text can cause."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer as HuggingFaceTokenizer

from harken_server.models.bundle import BundleError
from harken_server.models.growth import check_growth

# There are threads of ours, one for each text; the library's own would be one more for each core.
os.environ["TOKENIZERS_PARALLELISM"] = "false"

Ids = npt.NDArray[np.int64]
Places = npt.NDArray[np.uint32]

# A token takes some 4 characters of text; a text this much longer than the model's maximum is cut before it
# is tokenised, unless the cut turns out to matter.
_CHARACTERS_PER_TOKEN: Final = 16
# WordPiece looks at one word at a time, and makes a word of over 100 characters one unknown token: a cut
# can change no token but the last 100.
_DISTURBED_TOKENS: Final = 128
# Characters that hardly any vocabulary has.
_UNKNOWN: Final = "a \u0378 \u1e9e \U0001f9ff\U0002fa1d"


@dataclass(frozen=True, slots=True)
class Reading:
    """How a text becomes sequences.

    keep            of one that is longer than the model: its start, its end, or all of it, as chunks
    overlap_tokens  what two neighbouring chunks have in common: fewer than the model takes of a text
    places          whether to tell where in the text each token stands
    """

    keep: Literal["start", "end", "chunks"] = "start"
    overlap_tokens: int = 0
    places: bool = False


@dataclass
class TooManySequences(Exception):
    """With this text they become more sequences than there is room for. It is counted before any is made."""

    text: int
    """Its index."""
    sequences: int
    """Of it and of those before it."""


@dataclass(frozen=True, slots=True)
class Tokens:
    """One text, or one chunk of it, as the model reads it."""

    ids: Ids
    """int64 [length], special tokens included, at most the model's maximum length."""
    full_length: int
    """Tokens of the whole text, or of the chunk, special tokens included; more than len(ids) if it was cut."""
    counted_all: bool
    """False if the text was so much longer than the model that counting stopped at `full_length`."""
    special: int
    """How many of the ids are special tokens."""
    places: Places | None = None
    """uint32 [length, 2]: where in the text each token begins and ends, in characters; 0 and 0 of special tokens."""


class Tokenizer:
    """The tokenizer of one bundle. Calls release the GIL and may come from several threads."""

    def __init__(self, content: bytes, max_length: int, vocab_size: int) -> None:
        """`content`: a tokenizer.json.

        Raises BundleError if it is none, may make texts too long, fails on a text, makes ids that the model does not
        know, or leaves no room beside its special tokens.
        """
        check_growth(content)
        try:
            with _no_panic():
                tokenizer = HuggingFaceTokenizer.from_buffer(content)
                tokenizer.no_padding()
                tokenizer.no_truncation()
                # One that has no id for what it does not know is found out by a text only.
                tried = tokenizer.encode(_UNKNOWN)
        except Exception as error:
            raise BundleError(f"tokenizer.json: {error}") from error
        # The post-processor's special tokens have ids of their own, which need not stand in the vocabulary.
        highest = max((*tokenizer.get_vocab().values(), *tried.ids), default=0)
        if highest >= vocab_size:
            raise BundleError(f"tokenizer.json: has the id {highest}, but the model knows 0 to {vocab_size - 1}")
        self._tokenizer: Final = tokenizer
        self._special: Final = tokenizer.num_special_tokens_to_add(is_pair=False)
        self.most_text_tokens: Final = max_length - self._special
        """Of a text, beside the special tokens."""
        if self.most_text_tokens < 1:
            raise BundleError(f"tokenizer.json: adds {self._special} tokens, and the model takes {max_length} in all")
        self._enough_characters: Final = max_length * _CHARACTERS_PER_TOKEN
        self._enough_tokens: Final = max_length + _DISTURBED_TOKENS

    def names(self, ids: Ids) -> list[str]:
        """How the vocabulary writes tokens: of WordPiece "##ing" for the rest of a word. Empty of an id it has not."""
        return [self._tokenizer.id_to_token(token) or "" for token in ids.tolist()]

    def encode(self, texts: Sequence[str], reading: Reading, room: int) -> list[list[Tokens]]:
        """Tokenise each text by itself: one sequence of each or, in chunks, as many as it takes.

        Raises TooManySequences if they are more than `room`.
        """
        if reading.keep != "chunks":
            return [[self._cut(text, reading.keep == "end", reading.places)] for text in texts]
        most, sequences = self.most_text_tokens, 0
        parts: list[list[Tokens]] = []
        for text in texts:
            whole = self._whole(text, 0, places=True)
            step = most - reading.overlap_tokens
            starts = range(0, max(whole.body - reading.overlap_tokens, 1), step)
            sequences += len(starts)
            if sequences > room:
                raise TooManySequences(len(parts), sequences)
            parts.append([whole.chunk(start, min(start + most, whole.body)) for start in starts])
        return parts

    def _cut(self, text: str, end: bool, places: bool) -> Tokens:
        """Its start, or its end."""
        enough, most = self._enough_characters, self.most_text_tokens
        if len(text) > enough:
            start = len(text) - enough if end else 0
            part = self._whole(text[start : start + enough], start, places)
            if len(part.ids) > self._enough_tokens:
                return part.end(most, counted_all=False) if end else part.start(most, counted_all=False)
        whole = self._whole(text, 0, places)
        return whole.end(most, counted_all=True) if end else whole.start(most, counted_all=True)

    def _whole(self, text: str, begins: int, places: bool) -> "_Whole":
        """`begins`: where this text begins in the one that its places are of."""
        with _no_panic():
            # Only this form of it lets other threads run meanwhile.
            (encoding,) = self._tokenizer.encode_batch([text])
        mask = encoding.special_tokens_mask
        special = min(self._special, len(mask))
        # How many of the special tokens stand before the text.
        head = next((index for index, is_special in enumerate(mask) if not is_special), special)
        found = None
        if places:
            found = np.array(encoding.offsets, np.uint32).reshape(-1, 2)
            found[head : len(mask) - (special - head)] += begins
        return _Whole(np.array(encoding.ids, np.int64), found, head, special - head)


@contextmanager
def _no_panic() -> Iterator[None]:
    """A panic in Rust is no Exception, and would end more than its call; nor can its type be imported."""
    try:
        yield
    except BaseException as error:
        if type(error).__name__ == "PanicException":
            raise RuntimeError(str(error)) from error
        raise


@dataclass(frozen=True, slots=True)
class _Whole:
    """A text of any length: `head` special tokens, its own, `tail` special tokens."""

    ids: Ids
    places: Places | None
    head: int
    tail: int

    @property
    def body(self) -> int:
        """How many tokens are its own."""
        return len(self.ids) - self.head - self.tail

    def start(self, most: int, counted_all: bool) -> Tokens:
        """At most so many of its tokens, from its start."""
        return self._part(0, min(most, self.body), len(self.ids), counted_all)

    def end(self, most: int, counted_all: bool) -> Tokens:
        """At most so many of its tokens, up to its end."""
        return self._part(max(self.body - most, 0), self.body, len(self.ids), counted_all)

    def chunk(self, first: int, last: int) -> Tokens:
        """Some of its tokens, as a text of their own."""
        return self._part(first, last, last - first + self.head + self.tail, counted_all=True)

    def _part(self, first: int, last: int, full_length: int, counted_all: bool) -> Tokens:
        ids, places = self.ids, self.places
        if last - first < self.body:
            ids = self._framed(ids, first, last)
            places = None if places is None else self._framed(places, first, last)
        return Tokens(ids, full_length, counted_all, self.head + self.tail, places)

    def _framed(self, array: npt.NDArray[Any], first: int, last: int) -> npt.NDArray[Any]:
        tail = len(array) - self.tail
        return np.concatenate([array[: self.head], array[self.head + first : self.head + last], array[tail:]])
