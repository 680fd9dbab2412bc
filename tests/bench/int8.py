"""How much faster is int8 here? `python tests/bench/int8.py [ROUNDS]`

Exports MiniLM's size with random weights in fp32 and int8, and encodes one list of lengths (W1: lognormal, median 40,
p99 300, cap 512) with both in turns, A B B A, in this one process: two threads over one shared one-thread session,
sentence vectors only, sorted into batches of at most 512 padded tokens and one by one. Prints real tokens/s and
sequences/s (medians) and the median ratio.
"""

import os
import platform
import statistics
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnxruntime  # type: ignore[import-untyped]  # ships no types
from harken_export.bundle import Precision
from harken_export.checkpoints import random
from harken_export.model import EncoderConfig
from harken_export.trace import INPUTS, OUTPUTS, write_onnx

MINILM = EncoderConfig(layers=6, heads=12, hidden_size=384, intermediate_size=1536, vocab_size=30522, max_length=512)
SEED = 0
SEQUENCES, THREADS, BATCH_TOKENS = 200, 2, 512
MEDIAN, P99, CAP = 40, 300, 512
PRECISIONS: tuple[Precision, Precision] = ("fp32", "int8")


def draw_lengths() -> list[int]:
    # 2.326 standard deviations above the mean lies the 99th percentile of a normal distribution.
    sigma = np.log(P99 / MEDIAN) / 2.326
    lengths = np.random.default_rng(SEED).lognormal(np.log(MEDIAN), sigma, SEQUENCES)
    return [int(length) for length in lengths.round().clip(2, CAP)]


def sorted_batches(lengths: list[int]) -> list[list[int]]:
    batches: list[list[int]] = [[]]
    for length in sorted(lengths):
        if (len(batches[-1]) + 1) * length > BATCH_TOKENS:
            batches.append([])
        batches[-1].append(length)
    return batches


def run_s(session: onnxruntime.InferenceSession, batches: list[list[int]]) -> float:
    def encode(lengths: list[int]) -> None:
        mask = (np.arange(max(lengths)) < np.array(lengths)[:, None]).astype(np.int64)
        ids = np.random.default_rng(SEED).integers(0, MINILM.vocab_size, mask.shape)
        session.run(OUTPUTS[:1], dict(zip(INPUTS, (ids, mask), strict=True)))

    start = time.perf_counter()
    with ThreadPoolExecutor(THREADS) as pool:
        # Longest first, so that the threads end together.
        list(pool.map(encode, sorted(batches, key=lambda batch: -len(batch) * max(batch))))
    return time.perf_counter() - start


def make_session(precision: Precision, folder: Path) -> onnxruntime.InferenceSession:
    path = folder / f"{precision}.onnx"
    write_onnx(random(MINILM, SEED).encoder(), precision, path)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def cpu_model() -> str:
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    return next((line.split(": ")[1] for line in lines if line.startswith("model name")), platform.processor())


def main() -> None:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 10
    with tempfile.TemporaryDirectory() as folder:
        sessions = {precision: make_session(precision, Path(folder)) for precision in PRECISIONS}
    lengths = draw_lengths()
    print(f"{cpu_model()}, {os.cpu_count()} cores, {THREADS} threads; onnxruntime {onnxruntime.__version__}; ", end="")
    print(f"{SEQUENCES} sequences, seed {SEED}, {rounds} rounds\n")
    print("| batches | padded over real | fp32 seq/s | int8 seq/s | fp32 tokens/s | int8 tokens/s | ratio |")
    print("|---" * 7 + "|")
    for name, batches in (
        (f"sorted into {BATCH_TOKENS} tokens", sorted_batches(lengths)),
        ("one by one", [[length] for length in lengths]),
    ):
        for session in sessions.values():
            run_s(session, batches)
        times_s: dict[Precision, list[float]] = {precision: [] for precision in PRECISIONS}
        for turn in range(rounds):
            for precision in PRECISIONS if turn % 2 == 0 else PRECISIONS[::-1]:
                times_s[precision].append(run_s(sessions[precision], batches))
        fp32_s, int8_s = (statistics.median(times_s[precision]) for precision in PRECISIONS)
        ratio = statistics.median(a / b for a, b in zip(*times_s.values(), strict=True))
        padded = sum(len(batch) * max(batch) for batch in batches) / sum(lengths)
        seq, tokens = (f"{total / fp32_s:.0f} | {total / int8_s:.0f}" for total in (SEQUENCES, sum(lengths)))
        print(f"| {name} | {padded:.2f} | {seq} | {tokens} | {ratio:.2f} |", flush=True)


if __name__ == "__main__":
    main()
