"""A folder of sentence-transformers is exported only if its sentence vectors are the mean over the real tokens."""

import json
from pathlib import Path
from typing import Any

import pytest
from harken_export import checkpoints
from harken_export.errors import CheckpointRefused

MEAN = {"pooling_mode_cls_token": False, "pooling_mode_mean_tokens": True, "pooling_mode_max_tokens": False}


def write_pooling(folder: Path, pooling: dict[str, Any], name: str = "1_Pooling") -> None:
    (folder / name).mkdir()
    (folder / name / "config.json").write_text(json.dumps(pooling))


def write_modules(folder: Path, *kinds: str) -> None:
    modules = [
        {"idx": idx, "path": f"{idx}_{kind}" if idx else "", "type": f"sentence_transformers.models.{kind}"}
        for idx, kind in enumerate(kinds)
    ]
    (folder / "modules.json").write_text(json.dumps(modules))


def refusal(folder: Path) -> str:
    with pytest.raises(CheckpointRefused) as refused:
        checkpoints.from_folder(folder)
    return str(refused.value).replace(str(folder), "DIR")


@pytest.mark.parametrize("modules", [(), ("Transformer", "Pooling"), ("Transformer", "Pooling", "Normalize")])
@pytest.mark.parametrize("pooling", [MEAN, {}, {"pooling_mode": "mean"}, MEAN | {"include_prompt": True}])
def test_mean_pooling_is_exported(folder: Path, modules: tuple[str, ...], pooling: dict[str, Any]) -> None:
    write_pooling(folder, pooling)
    if modules:
        write_modules(folder, *modules)
    checkpoints.from_folder(folder)


@pytest.mark.parametrize("with_modules", [True, False])
@pytest.mark.parametrize(
    ("pooling", "name"),
    [
        (MEAN | {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}, "cls"),
        (MEAN | {"pooling_mode_max_tokens": True}, "mean+max"),
        ({"pooling_mode_mean_tokens": False, "pooling_mode_mean_sqrt_len_tokens": True}, "mean_sqrt_len"),
        ({"pooling_mode_mean_tokens": False, "pooling_mode_lasttoken": True}, "lasttoken"),
        ({"pooling_mode_mean_tokens": False}, "none"),
        ({"pooling_mode": "cls"}, "cls"),
    ],
)
def test_any_other_pooling_is_refused_by_name(
    folder: Path, pooling: dict[str, Any], name: str, with_modules: bool
) -> None:
    write_pooling(folder, pooling)
    if with_modules:
        write_modules(folder, "Transformer", "Pooling")
    assert refusal(folder) == f"pooling '{name}' is not supported; supported: mean"


def test_the_pooling_that_modules_names_counts_and_not_the_usual_folder(folder: Path) -> None:
    write_pooling(folder, MEAN)
    write_pooling(folder, {"pooling_mode": "max"}, name="2_Pooling")
    write_modules(folder, "Transformer", "Normalize", "Pooling")
    assert refusal(folder) == "pooling 'max' is not supported; supported: mean"


def test_a_mean_without_the_prompt_is_refused(folder: Path) -> None:
    write_pooling(folder, MEAN | {"include_prompt": False})
    assert refusal(folder) == "pooling without the prompt's tokens is not supported; supported: include_prompt true"


def test_any_further_module_is_refused_by_name(folder: Path) -> None:
    write_pooling(folder, MEAN)
    write_modules(folder, "Transformer", "Pooling", "Dense", "Normalize")
    assert refusal(folder) == "module 'Dense' is not supported; supported: Transformer, Pooling, Normalize"


def test_files_that_describe_no_pooling_are_named(folder: Path) -> None:
    write_modules(folder, "Transformer", "Pooling")
    assert refusal(folder) == "DIR/1_Pooling has no config.json"
    (folder / "modules.json").write_text("{}")
    assert refusal(folder) == "DIR/modules.json is not a JSON list of modules"
    (folder / "modules.json").write_text("[5]")
    assert refusal(folder) == "DIR/modules.json is not a JSON list of modules"
