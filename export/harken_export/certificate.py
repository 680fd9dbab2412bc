"""The certificate of int8: how near its sentence vectors are to float32's, over texts of every length.

The texts are cut from certificate_sentences.txt, which has prose of several fields, other scripts, numbers and code;
a quarter of them goes to each stratum of lengths. They and every figure depend on the model alone.
"""

from importlib import resources
from pathlib import Path

import numpy as np
import onnxruntime  # type: ignore[import-untyped]  # ships no types
from harken.v1.bundle_pb2 import Certificate, CertificateStratum
from numpy.typing import NDArray
from tokenizers import Tokenizer

from .errors import CertificateFailed
from .model import Encoder
from .verify import Batch, cosines, largest, run_onnx, run_torch

SEED = 0
SENTENCES = 512
# In tokens, both ends included.
STRATA = ((2, 8), (9, 32), (33, 128), (129, 512))
NEIGHBOURS = 10
# In a batch, and up to how many times as long as each the others may be.
COMPANIONS, LONGER = 4, 8

MIN_MEAN, MIN_FIRST_PERCENTILE, MIN_BATCH = 0.996, 0.98, 0.99999

Ids = NDArray[np.int64]


def certify(encoder: Encoder, path: Path, tokenizer_json: bytes | None) -> Certificate:
    """Compare the int8 ONNX file at `path` with the float32 `encoder`, and with itself in other batches.

    Without a tokenizer the sequences are random ids of the same lengths. Returns every figure. Raises
    CertificateFailed naming the first below its bound; NaN is always below.
    """
    random = np.random.default_rng(SEED)
    vocab_size, max_length = encoder.embeddings.word.num_embeddings, encoder.embeddings.position.num_embeddings
    strata = fitting_strata(max_length)
    if tokenizer_json is None:
        sequences = random_sequences(strata, vocab_size, random)
    else:
        sequences = text_sequences(strata, tokenizer_json, random)

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    alone = [pad([ids]) for ids in sequences]
    reference = np.concatenate([run_torch(encoder, batch).sentence for batch in alone])
    ours = np.concatenate([run_onnx(session, batch).sentence for batch in alone])
    together = in_batches(session, sequences, random)

    nearness = np.array(list(cosines(ours, reference)))
    certificate = Certificate(
        sentences=len(sequences),
        material="random ids" if tokenizer_json is None else "text",
        mean_cosine=float(nearness.mean()),
        first_percentile_cosine=float(np.percentile(nearness, 1)),
        worst_cosine=float(nearness.min()),
        bound_mean_cosine=MIN_MEAN,
        bound_first_percentile_cosine=MIN_FIRST_PERCENTILE,
        neighbour_overlap=neighbour_overlap(ours, reference),
        batch_min_cosine=min(cosines(ours, together)),
        batch_max_abs=largest(ours - together),
        bound_batch_min_cosine=MIN_BATCH,
        strata=describe_strata(strata, np.array([len(ids) for ids in sequences]), nearness),
    )
    hold("mean cosine", certificate.mean_cosine, MIN_MEAN)
    hold("first percentile of the cosines", certificate.first_percentile_cosine, MIN_FIRST_PERCENTILE)
    hold("min cosine between alone and in a batch", certificate.batch_min_cosine, MIN_BATCH)
    return certificate


def hold(figure: str, value: float, bound: float) -> None:
    # Written so that NaN, which compares false with everything, fails.
    if not value >= bound:
        raise CertificateFailed(figure, value, bound)


def fitting_strata(max_length: int) -> list[tuple[int, int]]:
    """STRATA cut to the model. One of a model of single tokens."""
    return [(low, min(high, max_length)) for low, high in STRATA if low <= max_length] or [(1, 1)]


def draw_lengths(strata: list[tuple[int, int]], random: np.random.Generator) -> list[int]:
    """SENTENCES lengths in tokens, as many of each stratum, short ones within it as likely as long ones are rare."""
    share = SENTENCES // len(strata)
    return [
        int(length)
        for low, high in strata
        for length in np.exp(random.uniform(np.log(low), np.log(high + 1), share)).astype(int)
    ]


def random_sequences(strata: list[tuple[int, int]], vocab_size: int, random: np.random.Generator) -> list[Ids]:
    return [random.integers(0, vocab_size, length) for length in draw_lengths(strata, random)]


def text_sequences(strata: list[tuple[int, int]], tokenizer_json: bytes, random: np.random.Generator) -> list[Ids]:
    """Passages that begin at any word of any paragraph, cut to the length in tokens that was drawn for them."""
    tokenizer = Tokenizer.from_str(tokenizer_json.decode())
    paragraphs = read_paragraphs()
    special = tokenizer.num_special_tokens_to_add(is_pair=False)
    sequences = []
    for length in draw_lengths(strata, random):
        # A text must be longer than its special tokens.
        tokenizer.enable_truncation(max(length, special + 1))
        first = int(random.integers(len(paragraphs)))
        words = paragraphs[first].split(" ")
        text = " ".join(words[int(random.integers(len(words))) :])
        while len(ids := tokenizer.encode(text).ids) < length:
            text += " " + paragraphs[int(random.integers(len(paragraphs)))]
        sequences.append(np.array(ids, np.int64))
    return sequences


def read_paragraphs() -> list[str]:
    text = resources.files(__package__).joinpath("certificate_sentences.txt").read_text(encoding="utf-8")
    return [line for line in text.splitlines() if line and not line.startswith("## ")]


def pad(sequences: list[Ids]) -> Batch:
    """The batch of these sequences; padded cells hold id 0."""
    lengths = tuple(len(ids) for ids in sequences)
    mask = (np.arange(max(lengths)) < np.array(lengths)[:, None]).astype(np.int64)  # [B, L]
    ids = np.zeros_like(mask)
    ids[mask.astype(bool)] = np.concatenate(sequences)
    return Batch(ids, mask, lengths)


def in_batches(
    session: onnxruntime.InferenceSession, sequences: list[Ids], random: np.random.Generator
) -> NDArray[np.float32]:
    """Sentence vectors float32 [sequences, H], computed among random companions."""
    lengths = [len(ids) for ids in sequences]
    order = np.argsort(np.log(lengths) + random.uniform(0, np.log(LONGER), len(lengths)))
    vectors = [
        run_onnx(session, pad([sequences[row] for row in order[start : start + COMPANIONS]])).sentence
        for start in range(0, len(order), COMPANIONS)
    ]
    return np.concatenate(vectors)[np.argsort(order)]


def neighbour_overlap(ours: NDArray[np.float32], reference: NDArray[np.float32]) -> float:
    """The mean share of each row's NEIGHBOURS nearest other rows, by cosine, that both agree on. Rows of length 1."""

    def nearest(vectors: NDArray[np.float32]) -> NDArray[np.int64]:
        similarity = vectors @ vectors.T
        np.fill_diagonal(similarity, -np.inf)
        return np.argsort(-similarity, axis=1, kind="stable")[:, :NEIGHBOURS]

    pairs = zip(nearest(ours), nearest(reference), strict=True)
    return float(np.mean([len(np.intersect1d(left, right)) / NEIGHBOURS for left, right in pairs]))


def describe_strata(
    strata: list[tuple[int, int]], lengths: NDArray[np.int64], nearness: NDArray[np.float64]
) -> list[CertificateStratum]:
    described = []
    for low, high in strata:
        among = nearness[(lengths >= low) & (lengths <= high)]
        described.append(
            CertificateStratum(
                shortest=low,
                longest=high,
                sentences=len(among),
                mean_cosine=float(among.mean()),
                worst_cosine=float(among.min()),
            )
        )
    return described
