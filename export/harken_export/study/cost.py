"""Time and memory of one encoder layer against length, in ONNX Runtime as the server runs it."""

import ctypes
import multiprocessing
import time
from collections.abc import Callable
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

HEADS, HIDDEN, VOCAB = 12, 384, 1000
LENGTHS = (16, 32, 64, 128, 256, 512, 768, 1024, 1536, 2048, 3072, 4096)
REPEATS = 7
# A smaller difference of peaks is the C library's, not the layer's.
LEAST_BYTES = 1 << 18
SQUARE = 1.5
"""An exponent that is nearer to 2 than to 1."""
NEAR = 2
# Of <malloc.h>.
M_MMAP_THRESHOLD = -3


def measure(lengths: tuple[int, ...] = LENGTHS, hidden_size: int = HIDDEN, heads: int = HEADS) -> dict[str, Any]:
    """Seconds (the fastest run) and bytes (peak above the loaded model) by length, batch of one, one thread."""
    config = EncoderConfig(
        layers=1,
        heads=heads,
        hidden_size=hidden_size,
        intermediate_size=4 * hidden_size,
        vocab_size=VOCAB,
        max_length=lengths[-1],
    )
    with TemporaryDirectory() as folder:
        path = Path(folder) / "layer.onnx"
        write_onnx(checkpoints.random(config, seed=0).encoder(), "fp32", path)
        seconds, peaks = (in_process(look, path, lengths) for look in (seconds_by_length, peaks_by_length))
    clear = [(length, peak) for length, peak in zip(lengths, peaks, strict=True) if peak >= LEAST_BYTES]
    return {
        "hidden_size": hidden_size,
        "heads": heads,
        "points": [
            {"length": length, "seconds": second, "bytes": peak}
            for length, second, peak in zip(lengths, seconds, peaks, strict=True)
        ],
        "time": law(lengths, seconds),
        "memory": law([length for length, _ in clear], [peak for _, peak in clear]),
        "textbook_crossover": 6 * hidden_size,
    }


def in_process(
    look: Callable[[Path, tuple[int, ...]], list[float]], path: Path, lengths: tuple[int, ...]
) -> list[float]:
    """In a process of its own, whose memory is the layer's and nobody else's."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(look, path, lengths).result()


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


def seconds_by_length(path: Path, lengths: tuple[int, ...]) -> list[float]:
    """Of one run of the layer, the fastest of REPEATS: whatever else the machine does makes it slower, never faster."""
    run = runner(path, arena=True)
    found = []
    for length in lengths:
        run(length)
        times = []
        for _ in range(REPEATS):
            began_s = time.perf_counter()
            run(length)
            times.append(time.perf_counter() - began_s)
        found.append(min(times))
    return found


def peaks_by_length(path: Path, lengths: tuple[int, ...]) -> list[float]:
    """The most that a run of the layer has in memory above what was there before it."""
    # Every large block comes from the system and goes back there: the C library would keep some, in pieces.
    ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, 1 << 16)
    run = runner(path, arena=False)
    run(lengths[0])
    found = []
    for length in lengths:
        # Sets the peak to what is resident now (proc_pid_clear_refs(5)).
        Path("/proc/self/clear_refs").write_text("5")
        before_bytes = memory_bytes("VmRSS")
        run(length)
        found.append(float(max(0, memory_bytes("VmHWM") - before_bytes)))
    return found


def runner(path: Path, *, arena: bool) -> Callable[[int], object]:
    """What runs the layer on so many random tokens, on one thread. An arena is faster, and keeps what it once took."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.enable_cpu_mem_arena, options.enable_mem_pattern = arena, False
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    random = np.random.default_rng(0)

    def run(length: int) -> object:
        ids = random.integers(0, VOCAB, (1, length))
        return session.run(OUTPUTS[:1], {"input_ids": ids, "attention_mask": np.ones_like(ids)})

    return run


def memory_bytes(name: str) -> int:
    """A figure of this process (proc_pid_status(5)): VmRSS is what is resident, VmHWM the most that ever was."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))


def claims(result: dict[str, Any]) -> list[Claim]:
    """What the figures say of the quadratic cost."""
    points, seconds, memory = result["points"], result["time"], result["memory"]
    textbook, last = result["textbook_crossover"], points[-1]["length"]
    crossover, square_at_once = seconds["crossover"], seconds["exponent_short"] > SQUARE
    found = [
        Claim(
            f"the time grows with the square of the length (exponent above {SQUARE})",
            seconds["exponent_long"] > SQUARE,
            f"exponent {seconds['exponent_long']:.2f} at {span(seconds['long'])} tokens",
        ),
        Claim(
            "it does so at every length",
            square_at_once,
            f"exponent {seconds['exponent_short']:.2f} at {span(seconds['short'])} tokens"
            + ("" if square_at_once else ": what grows slower rules"),
        ),
        Claim(
            f"the memory grows with the square of the length (exponent above {SQUARE})",
            memory["exponent_long"] > SQUARE,
            f"exponent {memory['exponent_long']:.2f} at {span(memory['long'])} tokens",
        ),
    ]
    if crossover is None or crossover > last:
        where = f"not reached at {last} tokens"
    else:
        where = f"measured at {crossover:.0f} tokens, by operations at 6 H = {textbook}"
    found.append(
        Claim(
            f"the quadratic term overtakes the linear one where the operations do (within {NEAR} times)",
            crossover is not None and 1 / NEAR < crossover / textbook < NEAR,
            where,
        )
    )
    return found


def span(ends: list[int]) -> str:
    return f"{ends[0]} to {ends[1]}"
