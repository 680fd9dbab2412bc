"""The whole export: trace, verify, describe, publish."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from importlib import metadata
from pathlib import Path

import onnx
import onnxruntime  # type: ignore[import-untyped]  # ships no types
import torch
from harken.v1.bundle_pb2 import Attention, Bundle, Certificate, Parity, TensorSpec

from .attention import describe_attention, refuse_too_large_attention, write_attention
from .bundle import FORMAT, MODEL, TOKENIZER, Precision, bundle_folder, describe_files, staged, write_manifest
from .certificate import certify
from .checkpoints import Checkpoint
from .trace import GRAPH, OPSETS, write_onnx
from .verify import verify
from .verify_attention import verify_attention

# Called with what begins now, and held open until that ends.
Progress = Callable[[str], AbstractContextManager[None]]


def export_bundle(
    checkpoint: Checkpoint,
    models_dir: Path,
    name: str,
    version: int = 1,
    *,
    precision: Precision = "fp32",
    attention: bool = True,
    force: bool = False,
    progress: Progress = lambda _: nullcontext(),
) -> Path:
    """Write `models_dir/name/version/` and return it.

    `attention`: with the second graph, attention.onnx. Raises an ExportError: InvalidBundleName, BundleExists unless
    `force`, ModelTooLarge, AttentionTooLarge, ParityFailed, CertificateFailed of int8. Whatever is raised, no half
    bundle is left.
    """
    if attention:
        refuse_too_large_attention(checkpoint.config)
    target = bundle_folder(models_dir, name, version)
    with staged(target, force=force) as folder:
        encoder = checkpoint.encoder()
        with progress("trace to ONNX"):
            write_onnx(encoder, precision, folder / MODEL)
        with progress("verify against PyTorch"):
            parity = verify(encoder, folder / MODEL, precision)
        certificate = None
        if precision == "int8":
            with progress("certify the loss"):
                certificate = certify(encoder, folder / MODEL, checkpoint.tokenizer_json)
        described = None
        if attention:
            with progress("add attention maps"):
                write_attention(encoder, precision, folder)
                described = describe_attention(
                    checkpoint.config, precision, verify_attention(encoder, folder, precision)
                )
        with progress("write the bundle"):
            if checkpoint.tokenizer_json is not None:
                (folder / TOKENIZER).write_bytes(checkpoint.tokenizer_json)
            manifest = describe(checkpoint, name, version, precision, parity, certificate, described)
            manifest.files.extend(describe_files(folder))
            write_manifest(manifest, folder)
    return target


def describe(
    checkpoint: Checkpoint,
    name: str,
    version: int,
    precision: Precision,
    parity: Parity,
    certificate: Certificate | None,
    attention: Attention | None,
) -> Bundle:
    """The manifest but for the files."""
    config = checkpoint.config
    tokens = ["batch", "length"]
    return Bundle(
        format=FORMAT,
        name=name,
        version=version,
        architecture="bert",
        layers=config.layers,
        heads=config.heads,
        hidden_size=config.hidden_size,
        intermediate_size=config.intermediate_size,
        vocab_size=config.vocab_size,
        max_length=config.max_length,
        pooling="mean",
        normalized=True,
        precision=precision,
        graph=GRAPH,
        opset=OPSETS[precision],
        inputs=[
            TensorSpec(name="input_ids", data_type="int64", shape=tokens),
            TensorSpec(name="attention_mask", data_type="int64", shape=tokens),
        ],
        outputs=[
            TensorSpec(name="sentence_embedding", data_type="float32", shape=["batch", str(config.hidden_size)]),
            TensorSpec(name="token_embeddings", data_type="float32", shape=[*tokens, str(config.hidden_size)]),
        ],
        weights=checkpoint.origin,
        parity=parity,
        certificate=certificate,
        attention=attention,
        made_with={
            "harken": metadata.version("harken"),
            "onnx": onnx.__version__,
            "onnxruntime": onnxruntime.__version__,
            "torch": torch.__version__,
        },
    )
