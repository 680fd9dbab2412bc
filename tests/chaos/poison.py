"""A bundle in which two token ids are poison, below everything that could know of it: in the graph itself."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper


@dataclass(frozen=True)
class Poisoned:
    """Where it is, and which ids do what.

    fails   the engine raises on any batch that holds it: the table of embeddings ends before it
    nan     every vector of its sequence is not a number
    """

    models: Path
    fails: int
    nan: int


def poisoned(bundle: Path, models: Path) -> Poisoned:
    """Write a poisoned copy of a bundle's folder into `models`, by the same name and version, hashes made anew.

    Raises ValueError if its graph has no table of one row for each token id.
    """
    manifest = json.loads((bundle / "bundle.json").read_text())
    vocab_size = manifest["vocab_size"]
    graph = onnx.load(str(bundle / "model.onnx"))
    tables = [one for one in graph.graph.initializer if len(one.dims) == 2 and one.dims[0] == vocab_size]
    if len(tables) != 1:
        raise ValueError(f"{bundle} has {len(tables)} tables of {vocab_size} rows, not 1")
    rows = numpy_helper.to_array(tables[0])[:-1].copy()
    rows[-1] = np.nan
    tables[0].CopyFrom(numpy_helper.from_array(rows, tables[0].name))
    content = graph.SerializeToString()
    file = {"name": "model.onnx", "sha256": hashlib.sha256(content).hexdigest(), "size_bytes": str(len(content))}
    folder = models / str(manifest["name"]) / str(manifest["version"])
    folder.mkdir(parents=True)
    (folder / "model.onnx").write_bytes(content)
    (folder / "bundle.json").write_text(json.dumps({**manifest, "files": [file]}))
    return Poisoned(models, fails=vocab_size - 1, nan=vocab_size - 2)
