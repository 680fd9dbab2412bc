"""What sentence-transformers writes beside the weights: how token vectors become a sentence vector."""

from pathlib import Path
from typing import Any

from .errors import CheckpointRefused
from .json_file import read_json, read_json_object

# Every vector is brought to length 1 here, whether the folder lists Normalize or not.
MODULES = ("Transformer", "Pooling", "Normalize")


def refuse_other_pooling(folder: Path) -> None:
    """Raises CheckpointRefused if the folder says that its sentence vectors are no mean over the real tokens."""
    modules = folder / "modules.json"
    paths = [folder / "1_Pooling"]
    if modules.is_file():
        paths = [folder / path for path in pooling_paths(modules)]
    for path in paths:
        if modules.is_file() or (path / "config.json").is_file():
            refuse_unless_mean(path / "config.json")


def pooling_paths(modules: Path) -> list[str]:
    """The folders of the Pooling modules. Raises CheckpointRefused naming a module that is not in MODULES."""
    raw = read_json(modules)
    if not isinstance(raw, list) or not all(isinstance(module, dict) for module in raw):
        raise CheckpointRefused(f"{modules} is not a JSON list of modules")
    paths = []
    for module in raw:
        kind = str(module.get("type")).rpartition(".")[2]
        if kind not in MODULES:
            raise CheckpointRefused(f"module '{kind}' is not supported; supported: {', '.join(MODULES)}")
        if kind == "Pooling":
            paths.append(str(module.get("path")))
    return paths


def refuse_unless_mean(path: Path) -> None:
    raw = read_json_object(path)
    if (pooling := pooling_name(raw)) != "mean":
        raise CheckpointRefused(f"pooling '{pooling}' is not supported; supported: mean")
    if raw.get("include_prompt", True) is not True:
        raise CheckpointRefused("pooling without the prompt's tokens is not supported; supported: include_prompt true")


def pooling_name(raw: dict[str, Any]) -> str:
    """One name in `pooling_mode`, or a switch for each mode, of which mean is on unless it is put off."""
    if "pooling_mode" in raw:
        return str(raw["pooling_mode"])
    switches = {"pooling_mode_mean_tokens": True, **raw}
    modes = [key for key, on in switches.items() if key.startswith("pooling_mode_") and on]
    names = [mode.removeprefix("pooling_mode_").removesuffix("_tokens").removesuffix("_token") for mode in modes]
    return "+".join(names) or "none"
