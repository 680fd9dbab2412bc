"""What each head of the real model looks at (Clark et al. 2019, "What Does BERT Look At?", sections 3 and 4)."""

from collections.abc import Sequence
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Generator, Tensor, nn

from harken_export.checkpoints import Checkpoint
from harken_export.model import Encoder, SelfAttention

from .claims import Claim
from .sentences import EXAMPLE

# A head belongs where more than half of its attention goes (Clark et al. 2019, section 3.1).
SHARE = 0.5
# What of its attention has to follow the words beyond what stays with the places: a little less is chance.
MARGIN = 0.1
# Nearly as broad as looking at all tokens alike.
BROAD = 0.9
KINDS = ("previous", "next", "itself", "delimiter", "same word", "other words")


def attention_maps(encoder: Encoder, ids: Tensor) -> Tensor:
    """What each token gives each token: ids int64 [1, L] -> float32 [layers, N, L, L], whose rows sum to 1."""
    seen: dict[tuple[int, str], Tensor] = {}
    handles = [
        getattr(attention, role).register_forward_hook(keep(seen, number, role))
        for number, attention in enumerate(attentions(encoder))
        for role in ("query", "key")
    ]
    try:
        with torch.inference_mode():
            encoder(ids, torch.ones_like(ids))
    finally:
        for handle in handles:
            handle.remove()
    return torch.cat([weights(attention, seen, number) for number, attention in enumerate(attentions(encoder))])


def attentions(encoder: Encoder) -> list[SelfAttention]:
    return [module for module in encoder.modules() if isinstance(module, SelfAttention)]


def keep(seen: dict[tuple[int, str], Tensor], number: int, role: str) -> Any:
    def hook(_: nn.Module, __: Any, output: Tensor) -> None:
        seen[number, role] = output

    return hook


def weights(attention: SelfAttention, seen: dict[tuple[int, str], Tensor], number: int) -> Tensor:
    query, key = (attention.split_heads(seen[number, role]) for role in ("query", "key"))
    scores: Tensor = query * attention.head_size**-0.5 @ key.transpose(-1, -2)
    return scores.softmax(-1)  # [1, N, L, L]


def measure(checkpoint: Checkpoint, sentences: list[str]) -> dict[str, Any]:
    """The share of attention that goes where, by layer and head, mean over all words of all sentences.

    From words only: [CLS] and [SEP] look at themselves, which would hide what the head does.
    """
    assert checkpoint.tokenizer_json is not None
    tokenizer = Tokenizer.from_str(checkpoint.tokenizer_json.decode())
    encoder = checkpoint.encoder()
    generator = Generator().manual_seed(0)
    sums: dict[str, Tensor] = {}
    for sentence in sentences:
        ids = torch.tensor(tokenizer.encode(sentence).ids)
        for name, value in look(encoder, ids, generator).items():
            sums[name] = sums.get(name, torch.zeros(())) + value
    shares = sums["shares"] / sums["words"]
    result = {
        "sentences": len(sentences),
        "words": int(sums["words"]),
        "shares": {kind: shares[..., n].tolist() for n, kind in enumerate(KINDS)},
        "uniform": dict(zip(KINDS, (sums["uniform"] / sums["words"]).tolist(), strict=True)),
        # Entropy over that of looking everywhere alike: 1 is that, 0 is one token.
        "breadth": (sums["entropy"] / sums["even"]).tolist(),
        # Where a word comes again in its sentence: the share of what it gives to other words that goes to it elsewhere.
        "twin": (sums["twin"] / sums["twins"]).tolist(),
        "uniform_twin": float(sums["uniform_twin"] / sums["twins"]),
        "follows_word": (sums["follows_word"] / sums["words"]).tolist(),
        "follows_place": (sums["follows_place"] / sums["words"]).tolist(),
    }
    return {**result, "example": example(encoder, tokenizer, result)}


def example(encoder: Encoder, tokenizer: Tokenizer, result: dict[str, Any]) -> dict[str, Any]:
    """EXAMPLE's tokens, and of each of four kinds the map of the head that is most so."""
    encoded = tokenizer.encode(EXAMPLE)
    maps = attention_maps(encoder, torch.tensor([encoded.ids]))
    shown: dict[str, dict[str, Any]] = {}
    scores = {
        "same word": result["twin"],
        **{kind: result["shares"][kind] for kind in ("previous", "next", "delimiter")},
    }
    for kind, values in scores.items():
        # A head may be the most so of two kinds: one that finds no other such word looks at [CLS].
        layer, head = strongest(values, without=[(map_["layer"], map_["head"]) for map_ in shown.values()])
        rows = [[round(share, 3) for share in row] for row in maps[layer, head].tolist()]
        shown[kind] = {"layer": layer, "head": head, "map": rows}
    return {"sentence": EXAMPLE, "tokens": encoded.tokens, "maps": shown}


def look(encoder: Encoder, ids: Tensor, generator: Generator) -> dict[str, Tensor]:
    """Sums over the words of one sequence, int64 [L], special tokens at both ends."""
    words = len(ids) - 2
    where = targets(ids)  # [kinds, words, L]
    maps = attention_maps(encoder, ids[None])
    rows = maps[:, :, 1:-1]  # [layers, N, words, L]
    order = torch.randperm(words, generator=generator)
    shuffled = torch.cat([ids[:1], ids[1:-1][order], ids[-1:]])
    among, moved = (among_words(one) for one in (maps, attention_maps(encoder, shuffled[None])))
    back = order.argsort()
    twins = (ids[1:-1, None] == ids[None, 1:-1]).float() - torch.eye(words)  # [words, words]
    return {
        "shares": torch.einsum("lnwk,cwk->lnc", rows, where),
        "uniform": where.mean(-1).sum(-1),
        "entropy": -torch.special.xlogy(rows, rows).sum((-1, -2)),
        "even": torch.tensor(float(len(ids))).log() * words,
        "follows_word": overlap(among, moved[:, :, back][:, :, :, back]),
        "follows_place": overlap(among, moved),
        "words": torch.tensor(float(words)),
        "twin": (among * twins).sum((-1, -2)),
        "uniform_twin": twins.sum() / max(1, words - 1),
        "twins": twins.any(-1).sum().float(),
    }


def among_words(maps: Tensor) -> Tensor:
    """What each word gives each other word, as shares that sum to 1. [layers, N, L, L] -> [layers, N, words, words]."""
    others = maps[:, :, 1:-1, 1:-1] * (1 - torch.eye(maps.shape[-1] - 2))
    return others / others.sum(-1, keepdim=True).clamp(min=torch.finfo(others.dtype).tiny)


def overlap(one: Tensor, other: Tensor) -> Tensor:
    """How much two maps have in common, 0 to 1 for each word, summed over the words. -> [layers, N]."""
    return torch.minimum(one, other).sum((-1, -2))


def targets(ids: Tensor) -> Tensor:
    """Which cells count as which of KINDS: 0 or 1, float32 [kinds, words, L]; each cell is of one kind."""
    length = len(ids)
    at, to = torch.meshgrid(torch.arange(1, length - 1), torch.arange(length), indexing="ij")
    delimiter = (to == 0) | (to == length - 1)
    near = {"previous": to == at - 1, "next": to == at + 1, "itself": to == at}
    near = {kind: cells & ~delimiter for kind, cells in near.items()}
    left = ~(delimiter | near["previous"] | near["next"] | near["itself"])
    same = left & (ids[at] == ids[to])
    kinds = near | {"delimiter": delimiter, "same word": same, "other words": left & ~same}
    return torch.stack([kinds[kind] for kind in KINDS]).float()


def kind_of(result: dict[str, Any], layer: int, head: int) -> str:
    """What a head is, as HEADS says."""
    shares = {kind: result["shares"][kind][layer][head] for kind in KINDS}
    if shares["delimiter"] > SHARE:
        return "delimiter"
    if max(shares[kind] for kind in ("previous", "next", "itself")) > SHARE:
        return "positional"
    if result["breadth"][layer][head] > BROAD:
        return "broad"
    moves = result["follows_word"][layer][head] - result["follows_place"][layer][head]
    return "content" if moves > MARGIN else "mixed"


HEADS = {
    "positional": "more than half of its attention goes to the token before, the one behind, or the word itself",
    "delimiter": "more than half goes to [CLS] and [SEP]",
    "broad": "neither, and it spreads over nearly all tokens (entropy above 0.9 of the most)",
    "content": "none of these, and when the words are shuffled its attention moves with them (by more than 0.1)",
    "mixed": "none of these",
}


def counts(result: dict[str, Any]) -> dict[str, int]:
    """How many heads are of each kind."""
    kinds = [kind_of(result, layer, head) for layer, row in enumerate(result["breadth"]) for head in range(len(row))]
    return {kind: kinds.count(kind) for kind in HEADS}


def strongest(values: list[list[float]], without: Sequence[tuple[int, int]] = ()) -> tuple[int, int]:
    """The layer and the head with the greatest value, from 0."""
    places = {(layer, head) for layer, row in enumerate(values) for head in range(len(row))} - set(without)
    return max(places, key=lambda at: values[at[0]][at[1]])


def name_of(layer: int, head: int) -> str:
    """As `harken attend` and the studio call it, so that it is found there."""
    return f"head {layer}.{head}"


def claims(result: dict[str, Any]) -> list[Claim]:
    """What the figures say of what heads look at."""
    number = counts(result)
    heads = sum(number.values())
    previous, following = (strongest(result["shares"][kind]) for kind in ("previous", "next"))
    layer, head = strongest(result["twin"])
    twin = f"{result['twin'][layer][head]:.0%} of what it gives to words ({result['uniform_twin']:.0%} if all alike)"

    def told(kind: str, at: tuple[int, int]) -> str:
        share = result["shares"][kind][at[0]][at[1]]
        even = result["uniform"][kind]
        return f"{name_of(*at)} gives {kind} {share:.0%} ({even:.0%} if it looked at all alike)"

    return [
        Claim(
            "some heads look at a place: the token before, the one behind, or the word itself",
            number["positional"] > 0,
            f"{number['positional']} of {heads}; {told('previous', previous)}, {told('next', following)}",
        ),
        Claim(
            "some heads look at delimiters",
            number["delimiter"] > 0,
            f"{number['delimiter']} of {heads}; {told('delimiter', strongest(result['shares']['delimiter']))}",
        ),
        Claim(
            "some heads look at content",
            number["content"] > 0,
            f"{number['content']} of {heads} move with the words; where a word comes again "
            f"{name_of(layer, head)} gives it {twin}",
        ),
    ]
