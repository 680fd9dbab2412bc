"""The proof that the ONNX graph computes what the PyTorch module computes, over ragged batches."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime  # type: ignore[import-untyped]  # ships no types
import torch
from harken.v1.bundle_pb2 import Parity, ParityCase
from numpy.typing import NDArray

from .bundle import Precision
from .errors import CheckpointRefused, ParityFailed
from .int8 import quantize
from .model import Encoder
from .trace import INPUTS, OUTPUTS

SEED = 0


@dataclass(frozen=True)
class Bounds:
    """What ONNX Runtime may differ from PyTorch's float32 by.

    On sentence vectors (of length 1) max_abs and min_cosine; on token vectors relative_token_max_abs, in units
    of the case's largest value; batch_max_abs between a sequence alone and in a batch.
    """

    max_abs: float
    min_cosine: float
    relative_token_max_abs: float
    batch_max_abs: float


BOUNDS: dict[Precision, Bounds] = {
    "fp32": Bounds(max_abs=1e-4, min_cosine=0.999999, relative_token_max_abs=1e-4, batch_max_abs=1e-5),
    # Random encoders of 24 layers stay below 5e-4, 0.999997, 3e-3 and 2e-4.
    "fp16": Bounds(max_abs=2e-3, min_cosine=0.9999, relative_token_max_abs=1e-2, batch_max_abs=1e-3),
    # One last bit of float32, PyTorch's against ONNX Runtime's, tips a rounding to the next integer; later layers
    # spread that until only the noise of the quantisation itself bounds it: 0.012, 0.997 and 0.027 in MiniLM.
    "int8": Bounds(max_abs=5e-2, min_cosine=0.98, relative_token_max_abs=0.1, batch_max_abs=1e-3),
}


@dataclass(frozen=True)
class Batch:
    """ids int64 [B, L], mask int64 [B, L] (1 is a real token), lengths of the rows. Padded cells hold random ids."""

    ids: NDArray[np.int64]
    mask: NDArray[np.int64]
    lengths: tuple[int, ...]

    def alone(self, row: int) -> "Batch":
        length = self.lengths[row]
        return Batch(self.ids[row : row + 1, :length], self.mask[row : row + 1, :length], (length,))


@dataclass(frozen=True)
class Vectors:
    """sentence float32 [B, H], tokens float32 [B, L, H]."""

    sentence: NDArray[np.float32]
    tokens: NDArray[np.float32]


def grid(max_length: int) -> dict[str, tuple[int, ...]]:
    """The lengths of each case's rows, by the case's name."""
    short = range(1, min(16, max_length) + 1)
    doubling = [2**power for power in range(max_length.bit_length()) if 2**power < max_length]
    return {
        "one token alone": (1,),
        "the longest alone": (max_length,),
        "lengths 1 to n": tuple(short),
        "all of one length": (max(1, max_length // 4),) * 4,
        "one long among short": (max_length, *short[:7]),
        "doubling to the longest": (*doubling, max_length),
    }


def verify(encoder: Encoder, path: Path, precision: Precision) -> Parity:
    """Compare the ONNX file at `path` with the float32 `encoder` over the grid. Returns every figure.

    int8 is compared with the same integers in PyTorch; what they lose is for the certificate to say.
    Raises ParityFailed naming the first case and figure out of BOUNDS; NaN is always out. Raises CheckpointRefused
    if the encoder itself gives a sentence vector of zeros: no length, no direction, nothing to compare.
    """
    bounds = BOUNDS[precision]
    if precision == "int8":
        encoder = quantize(encoder)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    random = np.random.default_rng(SEED)
    vocab_size, max_length = encoder.embeddings.word.num_embeddings, encoder.embeddings.position.num_embeddings
    batches = {name: make_batch(lengths, vocab_size, random) for name, lengths in grid(max_length).items()}

    cases = []
    for name, batch in batches.items():
        ours, reference = run_onnx(session, batch), run_torch(encoder, batch)
        if not reference.sentence.any(axis=1).all():
            raise CheckpointRefused(f"the weights give a sentence vector of zeros in case '{name}'")
        case, relative_token_max_abs = compare(name, batch, ours, reference)
        hold(name, "max abs of sentence vectors", case.sentence_max_abs, at_most=bounds.max_abs)
        hold(name, "min cosine of sentence vectors", case.min_cosine, at_least=bounds.min_cosine)
        hold(name, "relative max abs of token vectors", relative_token_max_abs, at_most=bounds.relative_token_max_abs)
        cases.append(case)

    name, batch = max(batches.items(), key=lambda entry: entry[1].mask.size - entry[1].mask.sum())
    batch_max_abs = compare_alone(session, batch)
    hold(name, "max abs between alone and in the batch", batch_max_abs, at_most=bounds.batch_max_abs)
    return Parity(
        bound_max_abs=bounds.max_abs,
        max_abs=max(case.sentence_max_abs for case in cases),
        min_cosine=min(case.min_cosine for case in cases),
        batch_max_abs=batch_max_abs,
        cases=cases,
    )


def make_batch(lengths: tuple[int, ...], vocab_size: int, random: np.random.Generator) -> Batch:
    mask = (np.arange(max(lengths)) < np.array(lengths)[:, None]).astype(np.int64)  # [B, L]
    return Batch(random.integers(0, vocab_size, mask.shape), mask, lengths)


def run_onnx(session: onnxruntime.InferenceSession, batch: Batch) -> Vectors:
    return Vectors(*session.run(OUTPUTS, dict(zip(INPUTS, (batch.ids, batch.mask), strict=True))))


def run_torch(encoder: Encoder, batch: Batch) -> Vectors:
    with torch.inference_mode():
        sentence, tokens = encoder(torch.from_numpy(batch.ids), torch.from_numpy(batch.mask))
    return Vectors(sentence.numpy(), tokens.numpy())


def compare(name: str, batch: Batch, ours: Vectors, reference: Vectors) -> tuple[ParityCase, float]:
    """The case's figures, and the largest token difference over the largest token value. Padded cells do not count."""
    real = batch.mask.astype(bool)
    token_max_abs = largest(ours.tokens[real] - reference.tokens[real])
    case = ParityCase(
        name=name,
        lengths=batch.lengths,
        sentence_max_abs=largest(ours.sentence - reference.sentence),
        token_max_abs=token_max_abs,
        min_cosine=min(cosines(ours.sentence, reference.sentence)),
    )
    return case, token_max_abs / largest(reference.tokens[real])


def compare_alone(session: onnxruntime.InferenceSession, batch: Batch) -> float:
    together = run_onnx(session, batch).sentence
    return max(
        largest(run_onnx(session, batch.alone(row)).sentence[0] - together[row]) for row in range(len(batch.lengths))
    )


def largest(values: NDArray[np.float32]) -> float:
    return float(np.abs(values).max())


def cosines(left: NDArray[np.float32], right: NDArray[np.float32]) -> Iterator[float]:
    """Of each row, in float64: the figures of interest are within 1e-6 of 1."""
    for a, b in zip(left.astype(np.float64), right.astype(np.float64), strict=True):
        yield float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)))


def hold(case: str, figure: str, value: float, *, at_most: float = np.inf, at_least: float = -np.inf) -> None:
    # Written so that NaN, which compares false with everything, fails.
    if not value <= at_most:
        raise ParityFailed(case, figure, value, at_most)
    if not value >= at_least:
        raise ParityFailed(case, figure, value, at_least)
