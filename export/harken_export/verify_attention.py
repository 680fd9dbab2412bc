"""The proof that attention.onnx gives the maps of the PyTorch module, and the vectors of the fast graph."""

from pathlib import Path

import numpy as np
import onnxruntime  # type: ignore[import-untyped]  # ships no types
import torch
from harken.v1.bundle_pb2 import AttentionParity
from numpy.typing import NDArray

from .attention import ATTENTIONS, AttentionEncoder, layers_of
from .bundle import ATTENTION, MODEL, Precision
from .model import Encoder
from .trace import INPUTS, OUTPUTS
from .verify import SEED, Batch, cosines, hold, largest, make_batch, run_onnx

BOUND_MAX_ABS = 1e-4
"""Of maps and sentence vectors against PyTorch's, as of the fast graph's vectors."""
BOUND_FAST_MAX_ABS = 1e-5
"""Of sentence vectors against the fast graph's, where that is float32; and of the sum of a row against 1."""

# A model of thousands of positions has maps of gigabytes: the longest sequence of the grid has no more than this.
MOST_MAPS_BYTES = 128 << 20


def attention_grid(max_length: int, layers: int, heads: int) -> dict[str, tuple[int, ...]]:
    """The lengths of each case's rows, by the case's name."""
    longest = min(max_length, int((MOST_MAPS_BYTES / (4 * layers * heads)) ** 0.5) or 1)
    half = max(longest // 2, 1)
    return {
        "one token alone": (1,),
        "the longest alone": (longest,),
        "lengths 1 to n": tuple(range(1, min(16, max_length) + 1)),
        "one long among short": (half, 1, max(half // 8, 1)),
    }


def verify_attention(encoder: Encoder, folder: Path, precision: Precision) -> AttentionParity:
    """Compare attention.onnx with the float32 `encoder`, and with model.onnx. Returns every figure.

    Raises ParityFailed naming the first case and figure out of its bound; NaN is always out.
    """
    providers = ["CPUExecutionProvider"]
    session = onnxruntime.InferenceSession(folder / ATTENTION, providers=providers)
    fast_session = onnxruntime.InferenceSession(folder / MODEL, providers=providers)
    random = np.random.default_rng(SEED)
    vocab_size, max_length = encoder.embeddings.word.num_embeddings, encoder.embeddings.position.num_embeddings
    layers = layers_of(encoder)

    parity = AttentionParity(bound_max_abs=BOUND_MAX_ABS, bound_fast_max_abs=BOUND_FAST_MAX_ABS, fast_min_cosine=np.inf)
    for name, lengths in attention_grid(max_length, len(layers), layers[0].attention.heads).items():
        batch = make_batch(lengths, vocab_size, random)
        feeds = dict(zip(INPUTS, (batch.ids, batch.mask), strict=True))
        maps, sentence = session.run((ATTENTIONS, OUTPUTS[0]), feeds)
        with torch.inference_mode():
            expected, expected_sentence, _ = (
                output.numpy()
                for output in AttentionEncoder(encoder)(torch.from_numpy(batch.ids), torch.from_numpy(batch.mask))
            )
        rows, expected_rows = real_rows(maps, batch), real_rows(expected, batch)
        fast = run_onnx(fast_session, batch).sentence
        figures = {
            "attentions_max_abs": largest(rows - expected_rows),
            "sentence_max_abs": largest(sentence - expected_sentence),
            "row_sum_max_abs": largest(rows.sum(-1, dtype=np.float64) - 1.0),
            "padding_max": max(largest(given) for given in padding(maps, batch)),
            "fast_max_abs": largest(sentence - fast),
        }
        bounds = {
            "attentions_max_abs": BOUND_MAX_ABS,
            "sentence_max_abs": BOUND_MAX_ABS,
            "row_sum_max_abs": BOUND_FAST_MAX_ABS,
            "padding_max": 0.0,
            "fast_max_abs": BOUND_FAST_MAX_ABS if precision == "fp32" else np.inf,
        }
        for figure, value in figures.items():
            hold(name, f"{figure} of the attention graph", value, at_most=bounds[figure])
            setattr(parity, figure, max(getattr(parity, figure), value))
        parity.fast_min_cosine = min(parity.fast_min_cosine, *cosines(sentence, fast))
    return parity


def real_rows(maps: NDArray[np.float32], batch: Batch) -> NDArray[np.float32]:
    """Of maps [layers, B, N, L, L] the rows of real tokens: [real tokens, layers, N, L]."""
    rows: NDArray[np.float32] = maps.transpose(1, 3, 0, 2, 4)[batch.mask.astype(bool)]
    return rows


def padding(maps: NDArray[np.float32], batch: Batch) -> list[NDArray[np.float32]]:
    """What real tokens give to padding, of each sequence; a zero where there is none."""
    nothing = np.zeros(1, np.float32)
    return [
        given if (given := maps[:, row, :, :length, length:]).size else nothing
        for row, length in enumerate(batch.lengths)
    ]
