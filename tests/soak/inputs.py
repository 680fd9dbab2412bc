"""What is sent, and what each of it gives alone."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

import numpy as np
import numpy.typing as npt
from harken_client import AsyncClient, Chunking
from harken_client.values import Encoding, Vector, VectorOptions

POOL, LONG_TEXTS = 200, 8
LONGEST = 512
BOUND = 1e-5
"""Of any element of a vector of length 1; so far may it be from what the input gave alone."""

PLAIN_BOUND = 1e-4
"""Of vectors that are not normalised, whose elements are some ten times as large."""

_WORDS = "the river was full of people and nobody would leave before midnight in that house of music".split()  # noqa: SIM905 - words read best as words
_FIRST_WORD, _VOCABULARY = 999, 30522


class Wrong(Exception):
    """An answer that is not what it has to be."""


@dataclass(frozen=True)
class Known:
    """An input, with its sentence vector [hidden] and its token vectors [tokens, hidden], as it gave them alone."""

    content: str | list[int]
    sentence: npt.NDArray[np.float32]
    tokens: npt.NDArray[np.float32]


@dataclass(frozen=True)
class Form:
    """Options of a call, what they make of an input, and how far an answer may be from it."""

    options: VectorOptions
    of: Callable[[Known], Vector]
    bound: float = BOUND
    decoded: Callable[[Encoding], Vector] = lambda encoding: encoding.vector

    def check(self, encoding: Encoding, known: Known) -> None:
        """Raises Wrong."""
        close(self.decoded(encoding), self.of(known), f"{self.options} of {known.content!r:.40}", self.bound)


def unit(vector: Vector) -> Vector:
    """Of length 1."""
    shortened: Vector = vector / np.linalg.norm(vector)
    return shortened


PLAIN = Form({}, lambda known: known.sentence)
FORMS = (
    PLAIN,
    Form({"dimensions": 64}, lambda known: unit(known.sentence[:64])),
    Form({"normalize": False}, lambda known: known.tokens.mean(axis=0), PLAIN_BOUND),
    Form({"pooling": "cls"}, lambda known: unit(known.tokens[0])),
    Form({"pooling": "max"}, lambda known: unit(known.tokens.max(axis=0))),
    Form({"element_type": "float16"}, lambda known: known.sentence, 5e-4),
    # Half a step, of which 127 are the greatest element.
    Form({"element_type": "int8"}, lambda known: known.sentence, 1 / 254, lambda one: one.vector * one.scale),
    # A bit may be either where the element is next to 0.
    Form(
        {"element_type": "binary"}, lambda known: np.sign(known.sentence) * (np.abs(known.sentence) > BOUND), 1.0,
        lambda one: 2.0 * np.unpackbits(one.vector) - 1.0,
    ),
    Form({"deterministic": True}, lambda known: known.sentence),
)  # fmt: skip


def close(got: Any, expected: Any, what: str, bound: float = BOUND) -> None:
    """Raises Wrong unless both have one shape, and no element is further off than `bound`."""
    got, expected = np.asarray(got), np.asarray(expected)
    if got.shape != expected.shape:
        raise Wrong(f"{what}: shape {got.shape}, not {expected.shape}")
    # One that is no number is not within it either.
    if not (np.abs(got.astype(np.float64) - expected) <= bound).all():
        raise Wrong(f"{what}: off by {np.abs(got.astype(np.float64) - expected).max():.3g}")


class Pool:
    """Inputs of 1 to 512 tokens, the logarithm of the length uniform; half of them texts. And texts that are longer."""

    def __init__(self, known: Sequence[Known], long: Sequence[tuple[str, Vector]]) -> None:
        self._known = known
        self._ids = [one for one in known if not isinstance(one.content, str)]
        self._long = long

    @classmethod
    async def learned(cls, client: AsyncClient, seed: int) -> "Pool":
        """Ask a server that nobody else asks, one input at a time."""
        random = Random(seed)  # noqa: S311 - a load that can be repeated, no secret
        known, long = [], []
        for number in range(POOL):
            content = _input(random, as_text=number % 2 == 0)
            sentence = (await client.encode([content], deterministic=True))[0]
            (tokens,) = await client.encode([content], output="tokens", deterministic=True)
            known.append(Known(content, sentence, tokens))
        for _ in range(LONG_TEXTS):
            text = " ".join(random.choices(_WORDS, k=random.randrange(600, 1200)))
            long.append((text, (await client.encode([text], chunking=Chunking(32)))[0]))
        return cls(known, long)

    def draw(self, random: Random, count: int) -> list[Known]:
        """`count` of them."""
        return random.choices(self._known, k=count)

    def draw_ids(self, random: Random, count: int) -> list[Known]:
        """`count` of those that are token ids."""
        return random.choices(self._ids, k=count)

    def draw_long(self, random: Random) -> tuple[str, Vector]:
        """A text of several chunks, and its vector."""
        return random.choice(self._long)


def _input(random: Random, as_text: bool) -> str | list[int]:
    length = round(math.exp(random.uniform(0, math.log(LONGEST))))
    if as_text:
        # Beside the two special tokens; each word is one token.
        return " ".join(random.choices(_WORDS, k=max(1, length - 2)))
    return [random.randrange(_FIRST_WORD, _VOCABULARY) for _ in range(length)]
