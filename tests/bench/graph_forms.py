"""Which form of the ONNX graph is fastest here? `python tests/bench/graph_forms.py [SECONDS_PER_CELL]`

Exports one encoder of MiniLM's size, with random weights, in every form, and times all of them in turns in this
one process: one thread, all tokens real, sentence vectors only. Prints real tokens/s (median run) as a table.
"""

import os
import platform
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnxruntime  # type: ignore[import-untyped]  # ships no types
import torch
from harken_export.checkpoints import random
from harken_export.model import Encoder, EncoderConfig, SelfAttention
from harken_export.trace import INPUTS, OUTPUTS, write_onnx
from onnxruntime.transformers.fusion_options import FusionOptions  # type: ignore[import-untyped]  # ships no types
from onnxruntime.transformers.optimizer import optimize_model  # type: ignore[import-untyped]  # ships no types
from torch import Tensor

MINILM = EncoderConfig(layers=6, heads=12, hidden_size=384, intermediate_size=1536, vocab_size=30522, max_length=512)
SHAPES = ((1, 16), (1, 128), (8, 64), (16, 128), (1, 512), (4, 512))
SEED = 0


class WhereAttention(SelfAttention):
    """Masks with a Where on each layer's scores instead of a bias made once."""

    def forward(self, hidden: Tensor, bias: Tensor) -> Tensor:
        query, key, value = (self.split_heads(linear(hidden)) for linear in (self.query, self.key, self.value))
        scores = (query * self.head_size**-0.5) @ key.transpose(-1, -2)
        scores = scores.masked_fill(bias < 0, torch.finfo(scores.dtype).min)
        output: Tensor = self.output(self.join_heads(scores.softmax(-1) @ value))
        return output


class DividedAttention(SelfAttention):
    """Divides the scores, as the pattern of ONNX Runtime's attention fusion wants it."""

    def forward(self, hidden: Tensor, bias: Tensor) -> Tensor:
        query, key, value = (self.split_heads(linear(hidden)) for linear in (self.query, self.key, self.value))
        scores = query @ key.transpose(-1, -2) / self.head_size**0.5 + bias
        output: Tensor = self.output(self.join_heads(scores.softmax(-1) @ value))
        return output


class NativeAttention(SelfAttention):
    """PyTorch's own attention, which the new exporter turns into ONNX's Attention operator."""

    def forward(self, hidden: Tensor, bias: Tensor) -> Tensor:
        query, key, value = (self.split_heads(linear(hidden)) for linear in (self.query, self.key, self.value))
        # ONNX Runtime refuses to broadcast the mask's third axis.
        bias = bias.expand(-1, -1, hidden.shape[1], -1)
        heads = torch.nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=bias)
        output: Tensor = self.output(self.join_heads(heads))
        return output


def trace(encoder: Encoder, path: Path) -> None:
    write_onnx(encoder, "fp32", path)


def trace_and_fuse(encoder: Encoder, path: Path, options: FusionOptions | None = None) -> None:
    write_onnx(encoder, "fp32", path)
    sizes = {"num_heads": MINILM.heads, "hidden_size": MINILM.hidden_size}
    optimize_model(str(path), "bert", **sizes, opt_level=0, optimization_options=options).save_model_to_file(str(path))


def trace_and_fuse_attention(encoder: Encoder, path: Path) -> None:
    options = FusionOptions("bert")
    options.enable_skip_layer_norm = options.enable_bias_skip_layer_norm = False
    trace_and_fuse(encoder, path, options)


def export_program(encoder: Encoder, path: Path) -> None:
    example = torch.ones(2, 7, dtype=torch.int64)
    axes = {0: torch.export.Dim("batch"), 1: torch.export.Dim("length", max=MINILM.max_length)}
    torch.onnx.export(
        encoder,
        (example, example),
        path,
        dynamo=True,
        opset_version=23,
        input_names=INPUTS,
        output_names=OUTPUTS,
        dynamic_shapes=(axes, axes),
        external_data=False,
        verbose=False,
    )


class Form(NamedTuple):
    attention: type[SelfAttention]
    write: Callable[[Encoder, Path], None]
    disabled_optimizers: str = ""


UNFUSED = "SkipLayerNormFusion;BiasGeluFusion;BiasSkipLayerNormFusion"
FORMS = {
    "trace, opset 17, added mask": Form(SelfAttention, trace),
    "the same, three fusions disabled": Form(SelfAttention, trace, UNFUSED),
    "trace, opset 17, Where mask": Form(WhereAttention, trace),
    "trace, opset 17, fully fused": Form(DividedAttention, trace_and_fuse),
    "trace, opset 17, attention fused": Form(DividedAttention, trace_and_fuse_attention),
    "export, opset 23, native Attention": Form(NativeAttention, export_program),
    "the same, three fusions disabled ": Form(NativeAttention, export_program, UNFUSED),
}


def make_session(form: Form, path: Path) -> onnxruntime.InferenceSession:
    encoder = random(MINILM, SEED).encoder()
    for layer in encoder.layers:
        layer.attention.__class__ = form.attention
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporters deprecate much of what they call themselves
        form.write(encoder, path)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    if form.disabled_optimizers:
        options.add_session_config_entry("optimization.disable_specified_optimizers", form.disabled_optimizers)
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def tokens_per_s(
    sessions: dict[str, onnxruntime.InferenceSession], batch: int, length: int, seconds_per_cell: float
) -> dict[str, float]:
    ids = np.random.default_rng(SEED).integers(0, MINILM.vocab_size, (batch, length))
    feed = dict(zip(INPUTS, (ids, np.ones_like(ids)), strict=True))
    runs_s: dict[str, list[float]] = {name: [] for name in sessions}
    for session in sessions.values():
        session.run(OUTPUTS[:1], feed)
    end = time.perf_counter() + seconds_per_cell * len(sessions)
    while time.perf_counter() < end:
        for name, session in sessions.items():
            start = time.perf_counter()
            session.run(OUTPUTS[:1], feed)
            runs_s[name].append(time.perf_counter() - start)
    return {name: batch * length / statistics.median(seconds) for name, seconds in runs_s.items()}


def cpu_model() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def main() -> None:
    seconds_per_cell = float(sys.argv[1]) if len(sys.argv) > 1 else 3.0
    with tempfile.TemporaryDirectory() as folder:
        sessions = {
            name: make_session(form, Path(folder) / f"{index}.onnx") for index, (name, form) in enumerate(FORMS.items())
        }
    print(f"{cpu_model()}, {os.cpu_count()} cores, 1 thread; onnxruntime {onnxruntime.__version__}, ", end="")
    print(f"torch {torch.__version__}; seed {SEED}, {seconds_per_cell:g} s a cell; real tokens/s\n")
    print("| form | " + " | ".join(f"{batch}x{length}" for batch, length in SHAPES) + " |")
    print("|---" * (len(SHAPES) + 1) + "|")
    table = [tokens_per_s(sessions, batch, length, seconds_per_cell) for batch, length in SHAPES]
    for name in FORMS:
        print(f"| {name.strip()} | " + " | ".join(f"{column[name]:.0f}" for column in table) + " |")


if __name__ == "__main__":
    main()
