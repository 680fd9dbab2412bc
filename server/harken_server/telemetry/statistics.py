"""What a model version did since it was loaded, as Triton's clients ask for it.

The counts are those of the Prometheus counters, which know no versions: over the versions of a model, those unloaded
too, `success` sums to the count of harken_request_duration_seconds, `sequences` to
harken_finished_total{outcome="answered"}, `batches` to harken_batches_total.
"""

from dataclasses import dataclass, field


@dataclass(slots=True)
class Durations:
    """How often, and how long in all."""

    count: int = 0
    sum_s: float = 0.0

    def add(self, duration_s: float) -> None:
        """Count one."""
        self.count += 1
        self.sum_s += duration_s


@dataclass(slots=True)
class Batches:
    """Of all batches of one size, the stages."""

    compute_input: Durations = field(default_factory=Durations)
    compute_infer: Durations = field(default_factory=Durations)
    compute_output: Durations = field(default_factory=Durations)


@dataclass(slots=True)
class Statistics:
    """Of one model version. Belongs to the event loop's thread.

    success         requests answered (inputs of a stream: each), from their arrival to their answer
    fail            requests that ended with an error after their version was found
    queue and on    of the answered requests the stages of the sequence that was last: its wait; making tokens and
                    padding; the run; from there to its own answer
    cache_*         sequences whose vectors were kept, or not, and how long it took to look
    """

    success: Durations = field(default_factory=Durations)
    fail: Durations = field(default_factory=Durations)
    queue: Durations = field(default_factory=Durations)
    compute_input: Durations = field(default_factory=Durations)
    compute_infer: Durations = field(default_factory=Durations)
    compute_output: Durations = field(default_factory=Durations)
    cache_hit: Durations = field(default_factory=Durations)
    cache_miss: Durations = field(default_factory=Durations)
    sequences: int = 0
    batches: int = 0
    last_inference_s: float = 0.0
    """Since 1970."""
    by_size: dict[int, Batches] = field(default_factory=dict)

    def ran(self, rows: int, input_s: float, infer_s: float, output_s: float) -> None:
        """Count a batch."""
        self.batches += 1
        batches = self.by_size.get(rows)
        if batches is None:
            self.by_size[rows] = batches = Batches()
        batches.compute_input.add(input_s)
        batches.compute_infer.add(infer_s)
        batches.compute_output.add(output_s)
