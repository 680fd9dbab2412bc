"""What is sent: three mixes of lengths as token ids, the same ones to every contestant."""

from dataclasses import dataclass
from functools import cache

from harken.v1 import encoder_pb2 as pb
from harken_client.load import workload

MODEL = "all-MiniLM-L6-v2"
VOCABULARY, MAX_LENGTH = 30522, 512
SEED = 1
COUNT = 8192
"""Distinct sequences of a mix; whoever needs more sends them again."""

STRIDE = 1024
"""So many sequences further starts each next round, so that a median speaks of more than one draw."""


@dataclass(frozen=True)
class Mix:
    """A mix of lengths, as `harken load --lengths` takes it."""

    name: str
    lengths: str


W1 = Mix("W1", "lognormal:median=40,p99=300,cap=512")
W2 = Mix("W2", "fixed:32")
W3_SHORT, W3_LONG = 16, 400
W3 = Mix("W3", f"bimodal:short={W3_SHORT},long={W3_LONG},share=0.1")
MIXES = (W1, W2, W3)


def every(length: int) -> Mix:
    """All sequences `length` tokens long."""
    return Mix(f"all {length}", f"fixed:{length}")


@cache
def sequences(mix: Mix) -> list[list[int]]:
    """The token ids of COUNT sequences."""
    drawn = workload.build(mix.lengths, count=COUNT, seed=SEED, vocab_size=VOCABULARY, max_length=MAX_LENGTH)
    ids = [sequence for sequence in drawn.inputs if not isinstance(sequence, str)]
    return [[int(one) for one in sequence] for sequence in ids]


def part(mix: Mix, offset: int, count: int) -> list[list[int]]:
    """`count` sequences from `offset` on, from the beginning again after the last."""
    drawn = sequences(mix)
    return [drawn[(offset + index) % COUNT] for index in range(count)]


@cache
def _messages(mix: Mix) -> list[pb.EncodeRequest]:
    return [pb.EncodeRequest(model=MODEL, inputs=[pb.Input(token_ids=pb.TokenIds(ids=ids))]) for ids in sequences(mix)]


def messages(mix: Mix, offset: int) -> list[pb.EncodeRequest]:
    """The calls, one sequence each, from `offset` on. Made once, so that the sending is light."""
    made = _messages(mix)
    start = offset % COUNT
    return made[start:] + made[:start]
