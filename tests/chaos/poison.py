"""A bundle in which two token ids are poison, below everything that could know of it: in the graph itself."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper
from support.bundles import write_changed


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
    vocab_size = json.loads((bundle / "bundle.json").read_text())["vocab_size"]

    def poison(model: onnx.ModelProto) -> None:
        tables = [one for one in model.graph.initializer if len(one.dims) == 2 and one.dims[0] == vocab_size]
        if len(tables) != 1:
            raise ValueError(f"{bundle} has {len(tables)} tables of {vocab_size} rows, not 1")
        rows = numpy_helper.to_array(tables[0])[:-1].copy()
        rows[-1] = np.nan
        tables[0].CopyFrom(numpy_helper.from_array(rows, tables[0].name))

    write_changed(bundle, models, poison)
    return Poisoned(models, fails=vocab_size - 1, nan=vocab_size - 2)
