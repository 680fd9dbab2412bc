"""Manifests as kustomize renders them, and what is wrong with them by the real schemas."""

import json
import subprocess
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import yaml

from support import kserve_types
from support.tools import REPOSITORY, TOOLS, missing, tool

K8S = REPOSITORY / "deploy" / "k8s"
KUBERNETES = "1.37"
_CRDS = TOOLS.parent / "crds"

Manifest = dict[str, Any]


class Refused(Exception):
    """What kustomize says of a folder that it does not render."""


def render(folder: Path) -> list[Manifest]:
    """All that `kubectl apply -k` would send. Raises Refused."""
    command = [tool("kubectl"), "kustomize", str(folder)]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)
    if done.returncode:
        raise Refused(done.stderr.strip())
    return [manifest for manifest in yaml.safe_load_all(done.stdout) if manifest]


def name_of(manifest: Manifest) -> str:
    """Kind/name."""
    return f"{manifest['kind']}/{manifest['metadata']['name']}"


def find(manifests: Iterable[Manifest], kind: str, name: str = "harken") -> Manifest:
    """The only one of this kind and name; of a ConfigMap without the hash that kustomize adds."""
    found = [
        manifest
        for manifest in manifests
        if manifest["kind"] == kind
        and (manifest["metadata"]["name"] == name or (kind == "ConfigMap" and _without_hash(manifest) == name))
    ]
    assert len(found) == 1, f"{len(found)} of {kind}/{name}"
    return found[0]


def problems(manifests: Sequence[Manifest]) -> list[str]:
    """What the schemas refuse, unknown fields too: sentences that begin with kind and name."""
    kserve, custom, core = [], [], []
    for manifest in manifests:
        group = manifest["apiVersion"].rpartition("/")[0]
        if group == "serving.kserve.io":
            kserve.append(manifest)
        elif ("." in group and not group.endswith("k8s.io")) or group == "gateway.networking.k8s.io":
            custom.append(manifest)
        else:
            core.append(manifest)
    found = [*_of_core(core), *_of_custom(custom)]
    for manifest in kserve:
        found += [f"{name_of(manifest)}: {problem}" for problem in kserve_types.problems(manifest)]
    return found


def _of_core(manifests: Sequence[Manifest]) -> list[str]:
    if not manifests:
        return []
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
        yaml.safe_dump_all(manifests, file)
        file.flush()
        command = [tool("kubernetes-validate"), "-k", KUBERNETES, "--strict", file.name]
        lines = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60).stdout.splitlines()
    passed = [line for line in lines if line.startswith("INFO")]
    found = [line.split(file.name)[-1].strip() for line in lines if not line.startswith("INFO")]
    assert len(passed) + len(found) == len(manifests), lines
    # It writes the kind in small letters.
    names = {name_of(manifest).lower(): name_of(manifest) for manifest in manifests}
    for small, name in names.items():
        found = [problem.replace(f"did not validate for resource {small} ", f"{name}: ") for problem in found]
    return found


def _of_custom(manifests: Sequence[Manifest]) -> list[str]:
    if not manifests:
        return []
    if not (_CRDS / "node_modules").is_dir():
        missing("the schemas of custom resources are not installed: tests/deploy/setup.sh installs them with npm")
    script = REPOSITORY / "tests" / "deploy" / "crds" / "check.mjs"
    done = subprocess.run(
        [tool("node"), str(script), str(_CRDS)],
        check=False, input=json.dumps(manifests), capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found: list[list[str]] = json.loads(done.stdout)
    return [
        f"{name_of(manifest)}: {problem}"
        for manifest, of_manifest in zip(manifests, found, strict=True)
        for problem in of_manifest
    ]


def _without_hash(manifest: Manifest) -> str:
    name: str = manifest["metadata"]["name"]
    return name.rpartition("-")[0]


def pod_of(manifest: Manifest) -> Manifest:
    """The PodSpec of a Deployment or a Job."""
    spec: Manifest = manifest["spec"]["template"]["spec"]
    return spec


def environment(manifests: Iterable[Manifest], container: Manifest) -> dict[str, str]:
    """What the container's process finds: envFrom first, env over it. Values from the cluster itself are refused."""
    manifests = list(manifests)
    values: dict[str, str] = {}
    for source in container.get("envFrom", []):
        if "configMapRef" in source:
            name = source["configMapRef"]["name"]
            values |= next(
                manifest["data"]
                for manifest in manifests
                if manifest["kind"] == "ConfigMap" and manifest["metadata"]["name"] == name
            )
        else:
            assert source["secretRef"]["optional"], "a Secret that is needed is not in the manifests"
    for entry in container.get("env", []):
        values[entry["name"]] = entry["value"]
    return values
