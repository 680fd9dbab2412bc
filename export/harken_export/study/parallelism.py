"""Time per sequence against length: attention and recurrent networks as bundles on the same server."""

import os
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnxruntime  # type: ignore[import-untyped]  # ships no types

from harken_export import checkpoints
from harken_export.bundle import MODEL
from harken_export.export import export_bundle
from harken_export.model import EncoderConfig
from harken_export.trace import INPUTS, OUTPUTS

from .claims import Claim
from .fits import exponent
from .recurrent import RECURRENCES, export_recurrent, make_random
from .serving import ask, server
from .training import ARCHITECTURES, NAMES, parameters

FLAT = 0.2
"""An exponent that is as good as none."""


@dataclass(frozen=True)
class Sizes:
    """What is served and asked. The default has MiniLM's layers, and a vocabulary that does not count."""

    layers: int = 6
    heads: int = 12
    hidden_size: int = 384
    vocab_size: int = 1000
    lengths: tuple[int, ...] = (8, 16, 32, 64, 128, 256, 512)
    repeats: int = 15
    warmup_s: float = 5.0

    @property
    def config(self) -> EncoderConfig:
        return EncoderConfig(
            layers=self.layers,
            heads=self.heads,
            hidden_size=self.hidden_size,
            intermediate_size=4 * self.hidden_size,
            vocab_size=self.vocab_size,
            max_length=self.lengths[-1],
        )


def export_all(config: EncoderConfig, models_dir: Path) -> dict[str, int]:
    """Write a bundle of random weights for each architecture. Returns how many weights each has."""
    checkpoint = checkpoints.random(config, seed=0)
    export_bundle(checkpoint, models_dir, "attention")
    counts = {"attention": config.weights}
    for recurrence in RECURRENCES:
        encoder = make_random(recurrence, config, seed=0)
        export_recurrent(encoder, recurrence, config, models_dir, recurrence, "random, seed 0")
        counts[recurrence] = parameters(encoder)
    return counts


def measure(sizes: Sizes) -> dict[str, Any]:
    """One sequence at a time: the fewest ms by architecture and length, at the caller and of the engine alone."""
    random = np.random.default_rng(0)
    calls: dict[tuple[str, int], list[tuple[float, float]]] = {}
    with TemporaryDirectory() as folder:
        counts = export_all(sizes.config, Path(folder))
        threads = threads_ms(Path(folder), sizes)
        with server(Path(folder), "--warmup-s", str(sizes.warmup_s)) as stub:
            # In turns, so that whatever else the machine does meets all alike.
            for _ in range(sizes.repeats):
                for length in sizes.lengths:
                    for architecture in ARCHITECTURES:
                        ids = random.integers(0, sizes.vocab_size, length)
                        call_s, response = ask(stub, architecture, ids)
                        compute_s = response.results[0].timings.compute_ns / 1e9
                        calls.setdefault((architecture, length), []).append((call_s, compute_s))
    points = {
        architecture: [
            {
                "length": length,
                "call_ms": 1e3 * min(call for call, _ in calls[architecture, length]),
                "compute_ms": 1e3 * min(compute for _, compute in calls[architecture, length]),
            }
            for length in sizes.lengths
        ]
        for architecture in ARCHITECTURES
    }
    return {
        "sizes": asdict(sizes),
        "weights": counts,
        "points": points,
        "threads": threads,
        "exponents": {name: exponent(*zip(*ends(of), strict=True)) for name, of in points.items()},
    }


def threads_ms(models_dir: Path, sizes: Sizes) -> dict[str, dict[str, Any]]:
    """Of the longest sequence in ONNX Runtime alone, on one thread and on all usable cores: what more cores can do."""
    ids = np.random.default_rng(0).integers(0, sizes.vocab_size, (1, sizes.lengths[-1]))
    feeds = dict(zip(INPUTS, (ids, np.ones_like(ids)), strict=True))
    cores = len(os.sched_getaffinity(0))
    found: dict[str, dict[str, Any]] = {}
    for architecture in ARCHITECTURES:
        path = models_dir / architecture / "1" / MODEL
        found[architecture] = {"cores": cores}
        for name, threads in (("one_ms", 1), ("all_ms", cores)):
            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads = threads
            session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
            found[architecture][name] = 1e3 * min(seconds(session, feeds) for _ in range(sizes.repeats))
    return found


def seconds(session: onnxruntime.InferenceSession, feeds: Any) -> float:
    began_s = time.perf_counter()
    session.run(OUTPUTS[:1], feeds)
    return time.perf_counter() - began_s


def ends(points: list[dict[str, float]]) -> list[tuple[float, float]]:
    """Length and milliseconds of the four longest."""
    return [(point["length"], point["compute_ms"]) for point in points[-4:]]


def claims(result: dict[str, Any]) -> list[Claim]:
    """What the figures say of parallelism."""
    attention, exponents = result["points"]["attention"], result["exponents"]
    found = []
    for name in RECURRENCES:
        times = [
            (point["length"], other["compute_ms"] / point["compute_ms"])
            for point, other in zip(attention, result["points"][name], strict=True)
        ]
        slower = [length for length, ratio in times if ratio <= 1]
        found.append(
            Claim(
                f"attention is faster than the {NAMES[name]} of as many weights, at every length",
                not slower,
                f"{times[0][1]:.1f} times at {times[0][0]} tokens, {times[-1][1]:.1f} at {times[-1][0]}"
                + (f"; not at {', '.join(map(str, slower))}" if slower else ""),
            )
        )
    gains = {name: one["one_ms"] / one["all_ms"] for name, one in result["threads"].items()}
    found.append(
        Claim(
            "more cores help attention more than recurrent networks",
            all(gains["attention"] > gains[name] for name in RECURRENCES),
            f"{result['threads']['attention']['cores']} cores instead of one, at {attention[-1]['length']} tokens: "
            + ", ".join(f"{NAMES[name]} {gains[name]:.2f} times as fast" for name in ARCHITECTURES),
        )
    )
    # Steps at once need cores to be taken on.
    flat = exponents["attention"] < FLAT
    busy = "" if flat else f": {result['threads']['attention']['cores']} cores are busy with far fewer tokens"
    found.append(
        Claim(
            f"attention's time does not grow with the length (exponent below {FLAT}), as its number of steps in "
            "sequence does not",
            flat,
            f"exponent {exponents['attention']:.2f} at the four longest{busy}; "
            + ", ".join(f"{NAMES[name]} {exponents[name]:.2f}" for name in RECURRENCES),
        )
    )
    return found
