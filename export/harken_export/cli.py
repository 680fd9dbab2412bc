"""The command `harken-export`."""

# ruff: noqa: PLC0415 - PyTorch takes seconds to import; a refusal or --if-missing must not wait for it

import hashlib
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer
from rich.console import Console
from typer.exceptions import TyperException

from .bundle import (
    ATTENTION,
    MANIFEST,
    MAX_VERSION,
    Precision,
    bundle_folder,
    holds_weights,
    lacks_attention,
    refuse_existing,
)
from .errors import BundleExists, CertificateFailed, ExportError, ParityFailed

if TYPE_CHECKING:
    from .checkpoints import Checkpoint

CHECK_FAILED, REFUSED, TERMINATED = 1, 2, 128 + signal.SIGTERM

console = Console(highlight=False, soft_wrap=True)
app = typer.Typer(
    name="harken-export",
    help="""Turn a BERT encoder into a bundle that a harken server loads.

    A bundle is the folder MODELS/NAME/VERSION with model.onnx, attention.onnx (the same with its attention maps as
    one more output), tokenizer.json (if the model takes text) and bundle.json, which describes and hashes them. Every
    export is checked against PyTorch before it is written: a graph that computes something else is refused. A sentence
    vector is the mean over the real tokens, of length 1.

    Exit code 0: the bundle is there. 1: the check failed. 2: the request cannot be met. 143: ended by SIGTERM.
    Nothing is left behind unless the code is 0.""",
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


Models = Annotated[Path, typer.Option("--models", metavar="DIR", help="The folder that holds all bundles.")]
Name = Annotated[
    str | None,
    typer.Option(
        "--name", metavar="NAME", help="The model's name to clients. With fp16 or int8 the default ends in it."
    ),
]
Version = Annotated[
    int,
    typer.Option(
        "--version",
        min=1,
        max=MAX_VERSION,
        metavar="N",
        help="The model's version; a server answers with the highest unless a client asks for another.",
    ),
]
PrecisionOption = Annotated[
    Precision,
    typer.Option(
        "--precision",
        help="fp16 halves the file and is for GPUs; int8 is for CPUs and loses a measured little. Vectors come out "
        "as float32 from all.",
    ),
]
Force = Annotated[bool, typer.Option("--force", help="Replace the bundle if it is there.")]
IfMissing = Annotated[
    bool,
    typer.Option(
        "--if-missing",
        help="Succeed at once if NAME/VERSION is there already. If only its attention.onnx is missing, and the "
        "weights are the same, it is exported again.",
    ),
]
AttentionOption = Annotated[
    bool,
    typer.Option(
        "--attention/--no-attention",
        help="Whether the bundle gets attention.onnx, which Attend needs. Beside fp32 weights it takes next to no "
        "room; beside fp16 or int8 it has fp32 weights of its own.",
    ),
]


@dataclass(frozen=True)
class Destination:
    """Where the bundle goes and in which form, as the common options say."""

    models_dir: Path
    name: str
    version: int
    precision: Precision
    attention: bool
    force: bool
    if_missing: bool
    incomplete: bool
    """Whether it is there without what is asked for."""


def destination(
    default_name: str,
    *,
    models: Path,
    name: str | None,
    version: int,
    precision: Precision,
    attention: bool,
    force: bool,
    if_missing: bool,
) -> Destination:
    """The common options, checked. Raises typer.Exit, code 0, if the bundle is there and nothing is to be done."""
    if force and if_missing:
        raise typer.BadParameter("it contradicts --if-missing", param_hint="--force")
    if name is None:
        name = default_name + ("" if precision == "fp32" else f"-{precision}")
    folder = bundle_folder(models, name, version)
    incomplete = if_missing and attention and lacks_attention(folder)
    if incomplete:
        console.print(f"{folder} is there, but has no {ATTENTION}", markup=False)
    else:
        with existing(is_enough=if_missing):
            refuse_existing(folder, force=force)
    return Destination(models, name, version, precision, attention, force, if_missing, incomplete)


@contextmanager
def existing(*, is_enough: bool) -> Iterator[None]:
    """Turns BundleExists into typer.Exit, code 0, if that is all one wants, at the start or after losing a race."""
    try:
        yield
    except BundleExists as error:
        if not is_enough or not (error.folder / MANIFEST).is_file():
            raise
        console.print(f"{error.folder} is there", markup=False)
        raise typer.Exit from None


@app.command()
def minilm(
    *,
    models: Models = Path("models"),
    name: Name = None,
    version: Version = 1,
    precision: PrecisionOption = "fp32",
    attention: AttentionOption = True,
    force: Force = False,
    if_missing: IfMissing = False,
) -> None:
    """Export all-MiniLM-L6-v2 (6 layers, 384 numbers a vector) from its PyPI package; needs no network.

    The default name is all-MiniLM-L6-v2. Where the package is missing, the error says how to install it.
    """
    place = destination(
        "all-MiniLM-L6-v2",
        models=models,
        name=name,
        version=version,
        precision=precision,
        force=force,
        attention=attention,
        if_missing=if_missing,
    )
    with step("load PyTorch"):
        from . import checkpoints
    with step("read the weights"):
        read = checkpoints.minilm()
    export(read, place)


@app.command()
def checkpoint(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Holds config.json and model.safetensors.")],
    *,
    models: Models = Path("models"),
    name: Name = None,
    version: Version = 1,
    precision: PrecisionOption = "fp32",
    attention: AttentionOption = True,
    force: Force = False,
    if_missing: IfMissing = False,
) -> None:
    """Export a Hugging Face folder of the BERT architecture: config.json, model.safetensors, tokenizer.json.

    Without a tokenizer.json the model takes token ids only. A sentence vector is the mean over the real tokens, of
    length 1: a folder of sentence-transformers that says otherwise is refused. The default name is the folder's.
    """
    place = destination(
        folder.resolve().name,
        models=models,
        name=name,
        version=version,
        precision=precision,
        force=force,
        attention=attention,
        if_missing=if_missing,
    )
    with step("load PyTorch"):
        from . import checkpoints
    with step("read the weights"):
        read = checkpoints.from_folder(folder, place.precision)
    export(read, place)


@app.command()
def random(
    *,
    layers: Annotated[int, typer.Option(help="Transformer layers.")] = 2,
    heads: Annotated[int, typer.Option(help="Attention heads; they must divide the hidden size.")] = 2,
    hidden: Annotated[int, typer.Option(help="Numbers in a vector.")] = 32,
    vocab: Annotated[int, typer.Option(help="Token ids: from 0 to one less.")] = 1000,
    max_length: Annotated[int, typer.Option(help="Longest sequence in tokens.")] = 128,
    intermediate: Annotated[
        int | None, typer.Option(help="Size of the feed-forward layer; 4 times the hidden size by default.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, max=2**63 - 1, help="Equal seeds give equal weights.")] = 0,
    models: Models = Path("models"),
    name: Name = None,
    version: Version = 1,
    precision: PrecisionOption = "fp32",
    attention: AttentionOption = True,
    force: Force = False,
    if_missing: IfMissing = False,
) -> None:
    """Export an encoder with random weights, for tests and for measuring a size before training it.

    It takes token ids only. The default name is random.
    """
    place = destination(
        "random",
        models=models,
        name=name,
        version=version,
        precision=precision,
        force=force,
        attention=attention,
        if_missing=if_missing,
    )
    with step("load PyTorch"):
        from . import checkpoints
        from .model import EncoderConfig
    config = EncoderConfig(
        layers=layers,
        heads=heads,
        hidden_size=hidden,
        intermediate_size=4 * hidden if intermediate is None else intermediate,
        vocab_size=vocab,
        max_length=max_length,
    )
    with step("draw the weights"):
        drawn = checkpoints.random(config, seed, place.precision)
    export(drawn, place)


def export(checkpoint: "Checkpoint", place: Destination) -> None:
    from .export import export_bundle

    folder = bundle_folder(place.models_dir, place.name, place.version)
    if place.incomplete and not holds_weights(folder, checkpoint.origin):
        console.print(
            f"{folder} is not known to hold these weights, and stays as it is: --force replaces it", markup=False
        )
        return
    with existing(is_enough=place.if_missing):
        export_bundle(
            checkpoint,
            place.models_dir,
            place.name,
            place.version,
            precision=place.precision,
            attention=place.attention,
            force=place.force or place.incomplete,
            progress=step,
        )
    digest = hashlib.sha256((folder / MANIFEST).read_bytes()).hexdigest()
    console.print(f"--bundle-digest sha256:{digest} serves this one and no other", markup=False)
    console.print(f"{folder} is ready", markup=False)


@contextmanager
def step(what: str) -> Iterator[None]:
    """One line with its seconds when it has ended; on a terminal also a sign of life until then."""
    start_s = time.monotonic()
    with console.status(what) if console.is_terminal else nullcontext():
        yield
    console.print(f"{what:<22} {time.monotonic() - start_s:6.1f} s", markup=False)


def run(arguments: list[str]) -> int:
    """Do what the arguments say. Returns the exit code; a reason for 1 or 2 is one line on stderr."""
    try:
        # Typer returns the code of an Exit, and None at the end of a command.
        return app(arguments or ["--help"], standalone_mode=False) or 0
    except (ParityFailed, CertificateFailed) as error:
        return complain(error, CHECK_FAILED)
    except (ExportError, OSError) as error:
        return complain(error, REFUSED)
    except TyperException as error:
        return complain(error.format_message(), REFUSED)


def complain(reason: object, code: int) -> int:
    print("harken-export: " + " ".join(str(reason).split()), file=sys.stderr)
    return code


def terminate(*_: object) -> NoReturn:
    """Ends as an exception, so that the half bundle is removed; a second signal must not disturb that."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    sys.exit(TERMINATED)


def main() -> None:
    signal.signal(signal.SIGTERM, terminate)
    sys.exit(run(sys.argv[1:]))
