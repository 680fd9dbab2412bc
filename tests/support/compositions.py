"""What of deploy/ is rendered in the tests: the overlays, and overlays of the tests' own for what no overlay has."""

import shutil
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import yaml

from support.manifests import K8S, Manifest, pod_of, render

SHIPPED = {
    folder: K8S / folder
    for folder in ("overlays/dev", "overlays/dev-scaled", "overlays/prod-cpu", "overlays/prod-gpu", "load", "../kserve")
}
"""What a user applies."""

COMPOSED: dict[str, list[str]] = {
    "base": [],
    "autoscaling-hpa": ["monitoring", "autoscaling-hpa"],
    "autoscaling-keda": ["monitoring", "autoscaling-keda"],
    "canary": ["canary"],
    "canary, all of it": [
        "canary",
        "gateway-to-tls",
        "tls",
        "api-keys",
        "model-from-s3",
        "monitoring",
        "autoscaling-keda",
    ],
    "gateway": ["gateway"],
    "gpu, from a claim": ["gpu", "model-from-pvc"],
    "from a bucket": ["model-from-s3"],
    "from a claim": ["model-from-pvc"],
}
"""Components over the base, by what the test calls them."""

EVERYTHING = (*SHIPPED, *COMPOSED)


@cache
def rendered(name: str) -> list[Manifest]:
    """Of `SHIPPED` or `COMPOSED`."""
    return render(SHIPPED[name]) if name in SHIPPED else compose(COMPOSED[name])


def compose(components: list[str]) -> list[Manifest]:
    """An overlay with these components in this order. Raises Refused."""
    with TemporaryDirectory() as folder:
        # kustomize takes no absolute paths.
        deploy = Path(folder) / "deploy"
        shutil.copytree(K8S.parent, deploy)
        overlay = deploy / "k8s" / "overlays" / "composed"
        overlay.mkdir()
        kustomization = {
            "namespace": "harken",
            "resources": ["../../base"],
            "components": [f"../../components/{component}" for component in components],
        }
        (overlay / "kustomization.yaml").write_text(yaml.safe_dump(kustomization))
        return render(overlay)


def servers() -> Iterator[tuple[str, list[Manifest], Manifest]]:
    """Every Deployment of a server, with the name of its composition and all that is in that."""
    for name in EVERYTHING:
        for manifest in rendered(name):
            if manifest["kind"] == "Deployment":
                yield name, rendered(name), manifest


def server_container(deployment: Manifest) -> Manifest:
    """The only container of a server's pod."""
    containers: list[Manifest] = pod_of(deployment)["containers"]
    assert [container["name"] for container in containers] == ["harken"]
    return containers[0]
