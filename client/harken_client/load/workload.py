"""What is sent: sequences whose lengths follow a distribution, the same ones for the same seed."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from harken_client.values import Input

FORMS = (
    "lognormal:median=40,p99=300[,cap=512], fixed:32, uniform:low=1,high=128, "
    "bimodal:short=16,long=400,share=0.1 or file:PATH"
)

# A vocabulary of this size is taken for BERT's: [CLS] and [SEP] frame a sequence, and the ids
# below 999 are special or unused.
_BERT_VOCABULARY = 30_000
_CLS, _SEP, _FIRST_WORD = 101, 102, 999
_LENGTH_DIGITS = 9
_P99_SIGMAS = 2.3263478740408408  # the 99th percentile of the standard normal distribution

# Each is one token of BERT's uncased vocabulary.
_WORDS = (  # noqa: SIM905 - words read best as words
    "the of and to in was for on with he that at from his it an were are which this be or had by not first "
    "their after other one new who time also city river house water music school state world year day"
).split()


@dataclass(frozen=True, slots=True)
class Workload:
    """`spec` is what was asked for; `inputs` are the sequences, sent in order and then again."""

    spec: str
    seed: int
    inputs: list[Input]


def build(spec: str, *, count: int, seed: int, vocab_size: int, max_length: int, text: bool = False) -> Workload:
    """`count` sequences, or all of those in a file. No length exceeds `max_length`.

    A sequence is token ids valid for the model, or, with `text`, a text of about as many tokens.
    Raises ValueError if the spec is none of FORMS, OSError if its file cannot be read.
    """
    if spec.startswith("file:"):
        lines = Path(spec.removeprefix("file:")).read_text(encoding="utf-8").splitlines()
        if not lines:
            raise ValueError(f"{spec} is empty")
        for number, line in enumerate(lines, 1):
            if not line.strip():
                raise ValueError(f"{spec}:{number}: a blank line, where a length or a text should be")
        if not all(line.strip().isdecimal() for line in lines):
            return Workload(spec, seed, list(lines))
        for number, line in enumerate(lines, 1):
            if len(line.strip()) > _LENGTH_DIGITS:
                raise ValueError(f"{spec}:{number}: {line.strip():.20} is no length in tokens")
        drawn = np.array([int(line) for line in lines])
    else:
        drawn = _distribution(spec)(np.random.default_rng(seed), count)
    shortest = 3 if text else 1
    lengths = np.clip(np.rint(drawn), shortest, max_length).astype(np.int64)
    rng = np.random.default_rng([seed, 1])
    make = _text if text else _token_ids
    return Workload(spec, seed, [make(int(length), rng, vocab_size) for length in lengths])


def _token_ids(length: int, rng: np.random.Generator, vocab_size: int) -> list[int]:
    if vocab_size <= _BERT_VOCABULARY or length < 3:
        low = _FIRST_WORD if vocab_size > _BERT_VOCABULARY else 0
        plain: list[int] = rng.integers(low, vocab_size, length).tolist()
        return plain
    return [_CLS, *rng.integers(_FIRST_WORD, vocab_size, length - 2).tolist(), _SEP]


def _text(length: int, rng: np.random.Generator, _vocab_size: int) -> str:
    return " ".join(_WORDS[i] for i in rng.integers(0, len(_WORDS), length - 2))


_Draw = Callable[[np.random.Generator, int], NDArray[np.float64]]


def _distribution(spec: str) -> _Draw:
    kind, _, rest = spec.partition(":")
    try:
        if kind == "fixed":
            fixed = _positive(float(rest))
            return lambda rng, count: np.full(count, fixed)
        values = {name: _positive(float(value)) for name, value in (part.split("=") for part in rest.split(","))}
        if kind == "lognormal":
            return _lognormal(**values)
        if kind == "uniform":
            return _uniform(**values)
        if kind == "bimodal":
            return _bimodal(**values)
    except (ValueError, TypeError) as error:
        raise ValueError(f"lengths {spec!r} are not one of {FORMS}") from error
    raise ValueError(f"lengths {spec!r} are not one of {FORMS}")


def _positive(value: float) -> float:
    if not 0 < value < math.inf:
        raise ValueError("a length and a share are above 0")
    return value


def _lognormal(*, median: float, p99: float, cap: float = math.inf) -> _Draw:
    sigma = _positive(math.log(p99 / median) / _P99_SIGMAS)
    return lambda rng, count: np.minimum(rng.lognormal(math.log(median), sigma, count), cap)


def _uniform(*, low: float, high: float) -> _Draw:
    if high < low:
        raise ValueError("high is below low")
    return lambda rng, count: rng.integers(int(low), int(high), count, endpoint=True).astype(np.float64)


def _bimodal(*, short: float, long: float, share: float) -> _Draw:
    if share > 1:
        raise ValueError("a share is at most 1")
    return lambda rng, count: np.where(rng.random(count) < share, long, short)
