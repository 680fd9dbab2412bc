"""Text to token ids, off the event loop, with a bound on the work that one text can cause."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Final

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer as HuggingFaceTokenizer

from harken_server.models.bundle import BundleError

Ids = npt.NDArray[np.int64]

# A token takes some 4 characters of text; a text this much longer than the model's maximum is cut before it
# is tokenised, unless the cut turns out to matter.
_CHARACTERS_PER_TOKEN: Final = 16
# WordPiece looks at one word at a time, and makes a word of over 100 characters one unknown token: a cut
# can change no token but the last 100.
_DISTURBED_TOKENS: Final = 128


@dataclass(frozen=True, slots=True)
class Tokens:
    """One text as the model reads it."""

    ids: Ids
    """int64 [length], special tokens included, at most the model's maximum length."""
    full_length: int
    """Tokens of the whole text, special tokens included; more than len(ids) if it was cut."""
    counted_all: bool
    """False if the text was so much longer than the model that counting stopped at `full_length`."""
    special: int
    """How many of the ids are special tokens."""


class Tokenizer:
    """The tokenizer of one bundle. Calls release the GIL and may come from several threads."""

    def __init__(self, content: bytes, max_length: int, vocab_size: int) -> None:
        """`content`: a tokenizer.json. Raises BundleError if it is none, or one of more ids than the model knows."""
        try:
            tokenizer = HuggingFaceTokenizer.from_buffer(content)
        except Exception as error:
            raise BundleError(f"tokenizer.json: {error}") from error
        if tokenizer.get_vocab_size() > vocab_size:
            raise BundleError(f"tokenizer.json: has {tokenizer.get_vocab_size()} ids, but the model knows {vocab_size}")
        tokenizer.no_padding()
        tokenizer.enable_truncation(max_length)
        self._tokenizer: Final = tokenizer
        self._content: Final = content
        self._max_length: Final = max_length
        self._special: Final = tokenizer.num_special_tokens_to_add(is_pair=False)
        self._enough_characters: Final = max_length * _CHARACTERS_PER_TOKEN
        self._enough_tokens: Final = max_length + _DISTURBED_TOKENS

    def encode(self, texts: Sequence[str], left: bool = False) -> list[Tokens]:
        """Tokenise each text by itself. One that is too long loses its end or, with `left`, its beginning."""
        return [self._encode(text, left) for text in texts]

    def _encode(self, text: str, left: bool) -> Tokens:
        enough = self._enough_characters
        if len(text) > enough:
            part = self._whole(text[-enough:] if left else text[:enough], left, counted_all=False)
            if part.full_length > self._enough_tokens:
                return part
        return self._whole(text, left, counted_all=True)

    @cached_property
    def _from_the_end(self) -> HuggingFaceTokenizer:
        """The same, that cuts the beginning: few ask for it, and it is a second vocabulary in memory."""
        tokenizer = HuggingFaceTokenizer.from_buffer(self._content)
        tokenizer.no_padding()
        tokenizer.enable_truncation(self._max_length, direction="left")
        return tokenizer

    def _whole(self, text: str, left: bool, counted_all: bool) -> Tokens:
        encoding = (self._from_the_end if left else self._tokenizer).encode(text)
        rest = sum(len(more.ids) - self._special for more in encoding.overflowing)
        return Tokens(
            ids=np.array(encoding.ids, np.int64),
            full_length=len(encoding.ids) + rest,
            counted_all=counted_all,
            special=self._special,
        )
