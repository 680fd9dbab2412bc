"""The component canary in the overlays of production, as docs/kubernetes.md puts it there: two versions, two sizes."""

from pathlib import Path
from shutil import copytree
from typing import Any

import pytest
import yaml
from support.compositions import server_container
from support.manifests import K8S, Manifest, find, problems, render

STABLE, CANARY = "registry.example.com/{}:0.1.0", "registry.example.com/{}:0.2.0-rc1"


def with_canary(overlay: str, image: str, tmp_path: Path, **more: Any) -> list[Manifest]:
    """A copy of `overlay` with the canary first, which brings the gateway, and its own image and number of pods."""
    deploy = tmp_path / "deploy"
    copytree(K8S.parent, deploy)
    page = deploy / "k8s" / "overlays" / overlay / "kustomization.yaml"
    asked = yaml.safe_load(page.read_text())
    components = [one for one in asked["components"] if not one.endswith("/gateway")]
    asked["components"] = ["../../components/canary", *components]
    new_name, new_tag = CANARY.format(image).split(":")
    asked["images"].append({"name": f"{image}-canary", "newName": new_name, "newTag": new_tag})
    asked["replicas"] = [{"name": "harken-canary", "count": 3}]
    page.write_text(yaml.safe_dump(asked | more))
    return render(page.parent)


@pytest.mark.parametrize(("overlay", "image"), [("prod-cpu", "harken-server"), ("prod-gpu", "harken-server-gpu")])
def test_the_two_versions_have_images_and_numbers_of_pods_of_their_own(
    overlay: str, image: str, tmp_path: Path
) -> None:
    manifests = with_canary(overlay, image, tmp_path)
    assert problems(manifests) == []
    stable, canary = (find(manifests, "Deployment", name) for name in ("harken", "harken-canary"))
    assert server_container(stable)["image"] == STABLE.format(image)
    assert server_container(canary)["image"] == CANARY.format(image)
    # The first is scaled, the second is not.
    assert "replicas" not in stable["spec"]
    assert canary["spec"]["replicas"] == 3
    assert server_container(stable)["resources"] == server_container(canary)["resources"]


def test_without_a_scaler_a_patch_by_the_track_sizes_the_first_version_alone(tmp_path: Path) -> None:
    dev = {
        "images": [{"name": "harken-server", "newTag": "0.1.0"}],
        "patches": [
            {
                "target": {"kind": "Deployment", "labelSelector": "harken/track=stable"},
                "patch": "- {op: replace, path: /spec/replicas, value: 5}",
            }
        ],
    }
    manifests = with_canary("dev", "harken-server", tmp_path, **dev)
    sizes = {name: find(manifests, "Deployment", name)["spec"]["replicas"] for name in ("harken", "harken-canary")}
    assert sizes == {"harken": 5, "harken-canary": 3}
    images = {name: server_container(find(manifests, "Deployment", name))["image"] for name in sizes}
    # Until it is named, nothing that a registry has is meant.
    assert images == {"harken": "harken-server:0.1.0", "harken-canary": "harken-server-canary:canary"}
