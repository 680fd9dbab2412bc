"""What the mask is for: the real model's sentence vectors, padded, with and without it."""

from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor

from harken_export.checkpoints import Checkpoint
from harken_export.model import Encoder, mean_pool

from .claims import Claim

PADDING = (0, 1, 4, 16, 64, 256)
# Any id but [PAD]'s.
GARBAGE_ID = 2000

ANOTHER = 0.99

# The two places that need the mask, and what is missing of it.
WAYS = {
    "masked": {"attention": True, "mean": True},
    "attention sees padding": {"attention": False, "mean": True},
    "mean counts padding": {"attention": True, "mean": False},
    "no mask": {"attention": False, "mean": False},
}


def measure(checkpoint: Checkpoint, sentences: list[str], padding: tuple[int, ...] = PADDING) -> dict[str, Any]:
    """By amount of padding: cosine to the vector of the sentence alone, and how many nearest neighbours stay."""
    assert checkpoint.tokenizer_json is not None
    tokenizer = Tokenizer.from_str(checkpoint.tokenizer_json.decode())
    sequences = [torch.tensor([tokenizer.encode(sentence).ids]) for sentence in sentences]
    encoder = checkpoint.encoder()
    pad_id = tokenizer.token_to_id("[PAD]") or 0
    alone = encode(encoder, sequences, 0, pad_id)["masked"]  # [S, H]
    nearest = neighbours(alone, alone)
    points: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
    for amount in padding:
        for way, padded in encode(encoder, sequences, amount, pad_id).items():
            cosine = (padded.double() * alone.double()).sum(1)
            points[way].append(
                {
                    "padding": amount,
                    "mean_cosine": float(cosine.mean()),
                    "worst_cosine": float(cosine.min()),
                    "max_abs": float((padded - alone).abs().max()),
                    "neighbours": float((neighbours(padded, alone) == nearest).float().mean()),
                }
            )
    garbage = encode(encoder, sequences, padding[-1], GARBAGE_ID)["masked"]
    lengths = sorted(ids.shape[1] for ids in sequences)
    return {
        "sentences": len(sentences),
        "median_tokens": lengths[len(lengths) // 2],
        "points": points,
        "garbage_max_abs": float((garbage - alone).abs().max()),
    }


def encode(encoder: Encoder, sequences: list[Tensor], amount: int, pad_id: int) -> dict[str, Tensor]:
    """The sentence vectors in each of WAYS with `amount` padded cells behind, float32 [S, H]."""
    rows: dict[str, list[Tensor]] = {way: [] for way in WAYS}
    for sequence in sequences:
        padding = torch.full((1, amount), pad_id)
        ids = torch.cat([sequence, padding], 1)
        masks = {
            True: torch.cat([torch.ones_like(sequence), torch.zeros_like(padding)], 1),
            False: torch.ones_like(ids),
        }
        with torch.inference_mode():
            tokens = {masked: encoder(ids, mask)[1] for masked, mask in masks.items()}
            for way, has in WAYS.items():
                rows[way].append(mean_pool(tokens[has["attention"]], masks[has["mean"]]))
    return {way: torch.cat(vectors) for way, vectors in rows.items()}


def neighbours(queries: Tensor, others: Tensor) -> Tensor:
    """The nearest other sentence of each, int64 [S]."""
    scores = queries @ others.T
    scores.fill_diagonal_(-2)
    return scores.argmax(1)


def claims(result: dict[str, Any]) -> list[Claim]:
    """What the figures say of masking."""
    points = result["points"]
    masked = max(point["max_abs"] for point in points["masked"])
    found = [
        Claim("with the mask padding changes nothing", masked < 1e-5, f"at most {masked:.1e} in any number"),
        Claim(
            "nor does what stands in the padded cells",
            result["garbage_max_abs"] < 1e-5,
            f"at most {result['garbage_max_abs']:.1e}",
        ),
    ]
    for way in list(WAYS)[1:]:
        worst, few = points[way][-1], points[way][1]
        found.append(
            Claim(
                f"{way}: the vector is another (mean cosine below {ANOTHER})",
                worst["mean_cosine"] < ANOTHER,
                f"mean cosine {few['mean_cosine']:.4f} at {few['padding']} padded, {worst['mean_cosine']:.3f} at "
                f"{worst['padding']}; {worst['neighbours']:.0%} of nearest neighbours stay",
            )
        )
    return found
