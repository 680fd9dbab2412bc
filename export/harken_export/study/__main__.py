"""`make study`: measure, draw, and write docs/attention.md.

    python -m harken_export.study --docs docs [--only cost,heads] [--processes 2]

Parts that are not measured are taken from docs/attention/*.json as they are; `--only none` draws and writes alone.
"""

import argparse
import json
import os
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from harken_export import checkpoints

from . import cost, heads, masking, page, parallelism, plot, recall
from .parallelism import Sizes
from .sentences import english
from .training import Course

PARTS = tuple(page.SECTIONS)
FIGURES = 4


@dataclass(frozen=True)
class Scale:
    """How much is measured: the default in a quarter of an hour, a test's in seconds."""

    course: Course = field(default_factory=Course)
    seeds: tuple[int, ...] = (0, 1)
    served: Sizes = field(default_factory=Sizes)
    cost_lengths: tuple[int, ...] = cost.LENGTHS
    sentences: int = 64


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m harken_export.study", description="What self-attention buys.")
    parser.add_argument("--docs", type=Path, default=Path("docs"), help="where attention.md and attention/ are written")
    parser.add_argument("--only", default=",".join(PARTS), help=f"parts to measure anew, of {','.join(PARTS)}; or none")
    parser.add_argument(
        "--processes", type=int, default=len(os.sched_getaffinity(0)), help="networks that are trained at a time"
    )
    asked = parser.parse_args(arguments)
    only = set(asked.only.split(",")) - {"none"}
    if unknown := only - set(PARTS):
        parser.error(f"--only: {', '.join(sorted(unknown))} is none of {', '.join(PARTS)}, none")
    for part in set(PARTS) - only:
        if not (file := asked.docs / "attention" / f"{part}.json").is_file():
            parser.error(f"--only: without {part}, {file} must be there already")
    study(asked.docs, only, asked.processes, Scale())


def study(docs: Path, only: set[str], processes: int, scale: Scale) -> None:
    """Measure the parts in `only`, write their figures, draw all and write the page."""
    folder = docs / "attention"
    folder.mkdir(parents=True, exist_ok=True)
    took_file, made_file = folder / "took.json", folder / "made_on.json"
    took, made_on = (json.loads(file.read_text()) if file.exists() else {} for file in (took_file, made_file))
    for parts, measure in measures(scale, processes).items():
        if only & set(parts):
            began_s = time.monotonic()
            for part, result in zip(parts, measure(), strict=True):
                write(folder / f"{part}.json", result)
            took[parts[0]] = round(time.monotonic() - began_s)
            print(f"{' and '.join(parts):<22} {took[parts[0]]:4} s", flush=True)
            write(took_file, took)
            made_on |= dict.fromkeys(parts, about())
            write(made_file, made_on)

    results = {name: json.loads((folder / f"{name}.json").read_text()) for name in PARTS}
    for name, result in results.items():
        plot.draw(name, result, folder / f"{name}.svg")
    cpu_s = sum(run["cpu_s"] for run in results["recall"]["runs"])
    minutes = f"{sum(took.values()) / 60:.0f} minutes ({cpu_s / 60:.0f} minutes of CPU time for the trainings)"
    (docs / "attention.md").write_text(page.page(results, made_on, minutes))
    print(f"{docs / 'attention.md'} is written")


def measures(scale: Scale, processes: int) -> dict[tuple[str, ...], Callable[[], Sequence[dict[str, Any]]]]:
    """What gives the results of which parts."""
    sentences = english()[: scale.sentences]
    return {
        ("recall", "gradients"): lambda: recall.measure(scale.course, scale.seeds, processes),
        ("parallelism",): lambda: [parallelism.measure(scale.served)],
        ("cost",): lambda: [cost.measure(scale.cost_lengths)],
        ("masking",): lambda: [masking.measure(checkpoints.minilm(), sentences)],
        ("heads",): lambda: [heads.measure(checkpoints.minilm(), sentences)],
    }


def write(path: Path, result: dict[str, Any]) -> None:
    path.write_text(json.dumps(rounded(result), indent=1, sort_keys=True) + "\n")


def rounded(value: Any) -> Any:
    """Floats to four significant figures: more is noise, and a file that is hard to compare."""
    if isinstance(value, float):
        return float(f"{value:.{FIGURES}g}")
    if isinstance(value, dict):
        return {key: rounded(entry) for key, entry in value.items()}
    return [rounded(entry) for entry in value] if isinstance(value, list | tuple) else value


def about() -> dict[str, str]:
    """What a reader needs to compare: of the machine that measures, which need not be the one that draws."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    cores = len(os.sched_getaffinity(0))
    return {
        "machine": f"{names[0] if names else platform.processor()}, {cores} cores, {platform.system()}, "
        f"Python {platform.python_version()}; CPU only",
        "versions": ", ".join(
            f"{name} {version(name)}" for name in ("harken", "torch", "onnx", "onnxruntime", "numpy")
        ),
    }


if __name__ == "__main__":
    main()
