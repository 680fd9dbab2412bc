"""What a trace, and the access log, are told of a request that was answered."""

from collections.abc import Sequence
from itertools import accumulate

from harken_server.execution.pending import Stamps
from harken_server.execution.served import ModelKey
from harken_server.telemetry.tracing import Trace
from harken_server.values import Answers


def size_of(answers: Answers) -> tuple[int, int]:
    """Sequences, and their tokens."""
    sequences = sum(len(answer.chunks) or 1 for answer in answers.answers)
    return sequences, sum(answer.tokens for answer in answers.answers)


def tell(
    trace: Trace, model: ModelKey, size: tuple[int, int], every: Sequence[Stamps], times: tuple[float, Stamps, float]
) -> None:
    """`size`: sequences and tokens; `every`: the stamps of each input.

    `times`: when the request came, the stamps of the sequence that was last, and when the answer was there.
    """
    received_s, stamps, answered_s = times
    moments_s = (
        received_s, stamps.received_s, stamps.queued_s, stamps.taken_s, stamps.collated_s, stamps.computed_s,
        stamps.scattered_s, answered_s,
    )  # fmt: skip
    (name, version), (sequences, tokens) = model, size
    trace.answered(
        # A run that failed has not come to all of them.
        list(accumulate(moments_s, max)),
        [stamps.batch for stamps in every if stamps.batch is not None],
        {"model": name, "version": version, "sequences": sequences, "tokens": tokens},
    )
