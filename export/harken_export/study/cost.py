"""Time and memory of one encoder layer against length, in ONNX Runtime as the server runs it."""

import multiprocessing
import os
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnxruntime  # type: ignore[import-untyped]  # ships no types

from harken_export import checkpoints
from harken_export.model import EncoderConfig
from harken_export.trace import OUTPUTS, write_onnx

from .claims import Claim
from .fits import exponent, quadratic

HEADS, HIDDEN = 12, 384
LENGTHS = (16, 32, 64, 128, 256, 512, 768, 1024, 1536, 2048, 3072, 4096)
REPEATS = 7
# A smaller difference of peaks is the C library's, not the layer's.
LEAST_BYTES = 1 << 20


def measure(lengths: tuple[int, ...] = LENGTHS, hidden_size: int = HIDDEN, heads: int = HEADS) -> dict[str, Any]:
    """Seconds (the fastest run) and bytes (peak above the loaded model) by length, batch of one, one thread."""
    config = EncoderConfig(
        layers=1,
        heads=heads,
        hidden_size=hidden_size,
        intermediate_size=4 * hidden_size,
        vocab_size=1000,
        max_length=lengths[-1],
    )
    with TemporaryDirectory() as folder:
        path = Path(folder) / "layer.onnx"
        write_onnx(checkpoints.random(config, seed=0).encoder(), "fp32", path)
        # A process of its own: its memory is the layer's and nobody else's.
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
            points = pool.submit(run_lengths, str(path), lengths).result()
    seconds, peaks = [point["seconds"] for point in points], [point["bytes"] for point in points]
    return {
        "hidden_size": hidden_size,
        "heads": heads,
        "points": points,
        "time": law(lengths, seconds),
        "memory": law(
            *zip(*((n, peak) for n, peak in zip(lengths, peaks, strict=True) if peak >= LEAST_BYTES), strict=True)
        ),
        "textbook_crossover": 6 * hidden_size,
    }


def law(lengths: Any, values: Any) -> dict[str, Any]:
    """The fits: c + a L + b L^2, its crossover a / b, and the exponents of the lower and of the upper end."""
    constant, linear, square = quadratic(lengths, values)
    short = [n for n in range(len(lengths)) if lengths[n] <= lengths[0] * 8]
    long = [n for n in range(len(lengths)) if lengths[n] >= lengths[-1] / 4]
    return {
        "c": constant,
        "a": linear,
        "b": square,
        "crossover": linear / square if square else None,
        "exponent_short": exponent([lengths[n] for n in short], [values[n] for n in short]),
        "exponent_long": exponent([lengths[n] for n in long], [values[n] for n in long]),
        "short": [lengths[short[0]], lengths[short[-1]]],
        "long": [lengths[long[0]], lengths[long[-1]]],
    }


def run_lengths(path: str, lengths: tuple[int, ...]) -> list[dict[str, float]]:
    """Run the layer at each length, from the shortest: the process's peak is then that of the latest length."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    # An arena keeps what it once took, and takes more than it needs.
    options.enable_cpu_mem_arena = options.enable_mem_pattern = False
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    random = np.random.default_rng(0)

    def run(length: int) -> float:
        ids = random.integers(0, 1000, (1, length))
        began_s = time.perf_counter()
        session.run(OUTPUTS[:1], {"input_ids": ids, "attention_mask": np.ones_like(ids)})
        return time.perf_counter() - began_s

    run(lengths[0])
    loaded_bytes = peak_bytes()
    points = []
    for length in lengths:
        run(length)
        points.append(
            {
                "length": length,
                "seconds": min(run(length) for _ in range(REPEATS)),
                "bytes": peak_bytes() - loaded_bytes,
            }
        )
    return points


def peak_bytes() -> int:
    """The most that this process ever had in memory (VmHWM of proc_pid_status(5))."""
    lines = Path(f"/proc/{os.getpid()}/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


def claims(result: dict[str, Any]) -> list[Claim]:
    """What the figures say of the quadratic cost."""
    points, seconds, memory = result["points"], result["time"], result["memory"]
    textbook, last = result["textbook_crossover"], points[-1]["length"]
    crossover = seconds["crossover"]
    found = [
        Claim(
            "the time grows with the square of the length",
            seconds["exponent_long"] > 1.5,
            f"exponent {seconds['exponent_long']:.2f} at {span(seconds['long'])} tokens",
        ),
        Claim(
            "it does so at every length",
            seconds["exponent_short"] > 1.5,
            f"exponent {seconds['exponent_short']:.2f} at {span(seconds['short'])} tokens: the linear term rules",
        ),
        Claim(
            "the memory grows with the square of the length",
            memory["exponent_long"] > 1.5,
            f"exponent {memory['exponent_long']:.2f} at {span(memory['long'])} tokens",
        ),
    ]
    if crossover is None or crossover > last:
        where = f"not reached at {last} tokens"
    else:
        where = f"measured at {crossover:.0f} tokens, by operations at 6 H = {textbook}"
    found.append(
        Claim(
            "the quadratic term overtakes the linear one where the operations do",
            crossover is not None and 0.5 < crossover / textbook < 2,
            where,
        )
    )
    return found


def span(ends: list[int]) -> str:
    return f"{ends[0]} to {ends[1]}"
