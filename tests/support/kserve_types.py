"""What is wrong with a resource of KServe, by the types that its Python package is generated with from its CRDs.

Every generated class names its fields in two literals, `openapi_types` and `attribute_map`, which are read from the
source: importing kserve would need all that a model server of its own needs. Types of Kubernetes come from its client.
"""

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from support.tools import TOOLS, missing

_PACKAGES = ("kserve/models", "kubernetes/client/models")
_SCALARS: dict[str, tuple[type, ...]] = {
    "str": (str,), "bool": (bool,), "int": (int,), "float": (int, float), "object": (object,), "datetime": (str,),
}  # fmt: skip


def problems(manifest: dict[str, Any]) -> list[str]:
    """Sentences, each with the path of a field: unknown names, missing ones, and values of another type."""
    group, version = manifest["apiVersion"].split("/")
    assert group == "serving.kserve.io"
    return list(_of_class(f"{version.capitalize()}{manifest['kind']}", manifest, ""))


def _of_class(name: str, value: Any, path: str) -> Iterator[str]:
    if not isinstance(value, dict):
        yield f"{path} is {value!r}, not an object"
        return
    types, required = _types(name)
    for field in required - value.keys():
        yield f"{path or name} needs {field}"
    for field, inner in value.items():
        where = f"{path}.{field}".lstrip(".")
        if field not in types:
            yield f"{where} is no field of {name}"
        else:
            yield from _of_type(types[field], inner, where)


def _of_type(type_name: str, value: Any, path: str) -> Iterator[str]:
    if type_name.startswith("list["):
        if not isinstance(value, list):
            yield f"{path} is {value!r}, not a list"
            return
        for index, inner in enumerate(value):
            yield from _of_type(type_name[5:-1], inner, f"{path}[{index}]")
    elif type_name.startswith("dict("):
        if not isinstance(value, dict):
            yield f"{path} is {value!r}, not an object"
            return
        for key, inner in value.items():
            yield from _of_type(type_name[5:-1].split(", ")[1], inner, f"{path}.{key}")
    elif type_name in _SCALARS:
        is_bool_for_number = isinstance(value, bool) and type_name in ("int", "float")
        if is_bool_for_number or not isinstance(value, _SCALARS[type_name]):
            yield f"{path} is {value!r}, not of type {type_name}"
    else:
        yield from _of_class(type_name, value, path)


@cache
def _types(class_name: str) -> tuple[dict[str, str], frozenset[str]]:
    """Of a generated class: the types of its fields, by their names in YAML, and which of these must be there."""
    for module in _modules():
        source = module.read_text()
        if f"class {class_name}(" not in source:
            continue
        literals = {
            node.targets[0].id: ast.literal_eval(node.value)
            for node in ast.walk(ast.parse(source))
            if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)
            and node.targets[0].id in ("openapi_types", "attribute_map")
        }  # fmt: skip
        names = literals["attribute_map"]
        return (
            {names[field]: type_name for field, type_name in literals["openapi_types"].items()},
            frozenset(names[field] for field in re.findall("`(\\w+)`, must not be `None`", source)),
        )
    raise LookupError(f"neither kserve nor kubernetes has a class {class_name}")


@cache
def _modules() -> list[Path]:
    folders = [folder for package in _PACKAGES for folder in TOOLS.parent.glob(f"lib/python*/site-packages/{package}")]
    if len(folders) < len(_PACKAGES):
        missing("the packages kserve and kubernetes are not installed: tests/deploy/setup.sh installs them")
    return [module for folder in folders for module in folder.glob("*.py")]
