"""Started as the manifests say: environment, arguments, user, mounts, limits; and probed as by the kubelet."""

import hashlib
import json
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
import trustme
from harken.v1 import encoder_pb2 as pb
from harken.v1 import encoder_pb2_grpc
from support.api_keys import KeyFile
from support.compositions import rendered
from support.kubelet import passes, wait_until_started
from support.manifests import Manifest, environment, find, pod_of
from support.pod import RunningPod, running_container
from support.server import COMMAND

CLIENT = [sys.executable, "-c", "from harken_client.cli import main; main()"]
TEXT = pb.EncodeRequest(inputs=[pb.Input(text="A man is eating food.")])


def deployment_of(composition: str) -> tuple[Manifest, Manifest, Any]:
    """(pod, container of the server, its environment)."""
    manifests = rendered(composition)
    pod = pod_of(find(manifests, "Deployment"))
    (container,) = pod["containers"]
    return pod, container, environment(manifests, container)


@contextmanager
def started(composition: str, folder: Path, **options: Any) -> Iterator[tuple[RunningPod, Manifest, float]]:
    """(the server's container, its manifest, seconds until its startup probe passed)."""
    pod, container, values = deployment_of(composition)
    with running_container(pod, container, COMMAND, values, folder, **options) as running:
        took_s = wait_until_started(running.ip, container["startupProbe"], lambda: running.process.poll() is None)
        yield running, container, took_s


def drain(running: RunningPod, container: Manifest, grace_s: float, call: Callable[[], int] = lambda: 0) -> float:
    """SIGTERM, and what the kubelet and the endpoints see until the end; seconds until it ended by itself.

    `call` is of somebody who has not heard of it yet: it must be answered, though there is no preStop.
    """
    begun_s = time.monotonic()
    running.terminate()
    while passes(running.ip, container["readinessProbe"]):
        assert time.monotonic() < begun_s + 5
    assert passes(running.ip, container["livenessProbe"])
    call()
    assert running.process.wait(grace_s) == 0
    return time.monotonic() - begun_s


def encode(target: str, credentials: grpc.ChannelCredentials | None = None, **metadata: str) -> int:
    """Dimensions of the vector that comes back."""
    options = [("grpc.enable_http_proxy", 0), ("grpc.ssl_target_name_override", "harken")]
    plain = grpc.insecure_channel(target, options[:1])
    with grpc.secure_channel(target, credentials, options) if credentials else plain as channel:
        answer = encoder_pb2_grpc.EncoderStub(channel).Encode(TEXT, timeout=20, metadata=tuple(metadata.items()))
        return answer.results[0].embedding.shape[0]


def get(url: str, body: Any = None) -> Any:
    data = None if body is None else json.dumps(body).encode()
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(url, data, timeout=20) as response:
        return response.read().decode()


def test_the_pod_of_dev_starts_serves_and_drains_and_the_load_job_finds_it(
    minilm_models: Path, tmp_path: Path, record_property: Any
) -> None:
    image = {"/models": minilm_models}
    (tmp_path / "server").mkdir()
    with started("overlays/dev", tmp_path / "server", image=image) as (running, container, took_s):
        assert passes(running.ip, container["readinessProbe"])
        assert passes(running.ip, container["livenessProbe"])
        assert encode(f"{running.ip}:8001") == 384
        answer = json.loads(get(f"http://{running.ip}:8000/v1/embeddings", {"model": "all-MiniLM-L6-v2", "input": "a"}))
        assert len(answer["data"][0]["embedding"]) == 384
        # The limits of the manifest are what it plans with.
        machine = running.event("machine")
        assert machine["cores"] == 1
        assert machine["memory_bytes"] <= 1 << 30
        assert (running.event("device")["device"], running.event("device")["lanes"]) == ("cpu", 1)
        assert list(running.volumes["state"].iterdir())
        scraped = get(f"http://{running.ip}:8002/metrics")
        assert 'harken_offered_work_seconds_total{model="all-MiniLM-L6-v2",outcome="refused"}' in scraped
        assert 'harken_engine_busy_seconds_total{lane="0"}' in scraped
        run_load_job(running, tmp_path)
        pod, _, _ = deployment_of("overlays/dev")
        grace_s = pod["terminationGracePeriodSeconds"]
        ended_s = drain(running, container, grace_s, call=lambda: encode(f"{running.ip}:8001"))
    allowed_s = container["startupProbe"]["periodSeconds"] * container["startupProbe"]["failureThreshold"]
    record_property("found", f"started after {took_s:.0f} of {allowed_s} s, ended after {ended_s:.1f} of {grace_s} s")


def run_load_job(server: RunningPod, tmp_path: Path) -> None:
    """The Job's own container against the server, for 2 seconds instead of minutes."""
    folder = tmp_path / "load"
    folder.mkdir()
    pod = pod_of(find(rendered("load"), "Job", "harken-load"))
    (container,) = pod["containers"]
    args = ["--duration=2" if argument.startswith("--duration=") else argument for argument in container["args"]]
    assert args != container["args"]
    container = {**container, "args": args}
    names = f"{server.ip} harken-headless"
    with running_container(pod, container, CLIENT, {}, folder, beside=server, hosts=names) as job:
        assert job.process.wait(60) == 0, job.stderr.read_text()
    report = job.stderr.read_text()
    assert "p99" in report


def test_the_pod_of_production_speaks_tls_and_asks_for_keys_and_its_probes_need_neither(
    minilm_models: Path, tmp_path: Path, record_property: Any
) -> None:
    ca = trustme.CA()
    pair = ca.issue_cert("harken", "harken-headless")
    keys = KeyFile(tmp_path / "keys.toml")
    keys.write(search="")
    secrets = {
        "tls": {
            "tls.crt": b"".join(pem.bytes() for pem in pair.cert_chain_pems),
            "tls.key": pair.private_key_pem.bytes(),
        },
        "api-keys": {"keys.toml": keys.path.read_bytes()},
    }
    folder = tmp_path / "server"
    folder.mkdir()
    options = {"image": {"/models": minilm_models}, "contents": secrets}
    with started("overlays/prod-cpu", folder, **options) as (running, container, took_s):
        assert passes(running.ip, container["readinessProbe"])
        assert passes(running.ip, container["livenessProbe"])
        target, trusted = f"{running.ip}:8001", grpc.ssl_channel_credentials(ca.cert_pem.bytes())
        assert encode(target, trusted, **keys.bearer("search")) == 384
        for credentials, metadata, code in (
            (trusted, {}, grpc.StatusCode.UNAUTHENTICATED),
            (None, keys.bearer("search"), grpc.StatusCode.UNAVAILABLE),
        ):
            with pytest.raises(grpc.RpcError) as refused:
                encode(target, credentials, **metadata)
            assert refused.value.code() is code
        # Nobody but its group reads the private key, and it runs in that.
        mode = (running.volumes["tls"] / "..1" / "tls.key").stat()
        assert (oct(mode.st_mode & 0o777), mode.st_gid) == ("0o440", 10001)
        pod, _, _ = deployment_of("overlays/prod-cpu")
        ended_s = drain(running, container, pod["terminationGracePeriodSeconds"])
    record_property("found", f"started after {took_s:.0f} s, ended after {ended_s:.1f} s")


def test_the_container_of_kserve_serves_the_bundle_that_is_mounted_there_under_its_services_name(
    minilm_models: Path, tmp_path: Path, record_property: Any
) -> None:
    runtime = find(rendered("../kserve"), "ServingRuntime")["spec"]
    predictor = find(rendered("../kserve"), "InferenceService", "minilm")["spec"]["predictor"]
    (container,) = runtime["containers"]
    # What KServe's controller does with it.
    container = {**container, "args": [argument.replace("{{.Name}}", "minilm") for argument in container["args"]]}
    pod = {"volumes": runtime["volumes"], "securityContext": predictor["securityContext"]}
    image = {"/mnt/models": minilm_models / "all-MiniLM-L6-v2" / "1"}
    with running_container(pod, container, COMMAND, {}, tmp_path, image=image) as running:
        took_s = wait_until_started(running.ip, container["startupProbe"], lambda: running.process.poll() is None)
        request = {"inputs": [{"name": "input_ids", "datatype": "INT64", "shape": [1, 3], "data": [101, 2158, 102]}]}
        answer = json.loads(get(f"http://{running.ip}:8080/v2/models/minilm/infer", request))
        assert answer["model_name"] == "minilm"
        assert [1, 384] in [output["shape"] for output in answer["outputs"]]
        assert encode(f"{running.ip}:8001") == 384
        ended_s = drain(running, container, predictor["terminationGracePeriodSeconds"])
    record_property("found", f"started after {took_s:.0f} s, ended after {ended_s:.1f} s")


def test_the_pod_of_a_gpu_without_one_says_so_and_ends(minilm_models: Path, tmp_path: Path) -> None:
    pod, container, values = deployment_of("gpu, from a claim")
    claim = tmp_path / "claim" / "all-MiniLM-L6-v2-fp16"
    claim.mkdir(parents=True)
    pod = {**pod, "volumes": [volume for volume in pod["volumes"] if volume["name"] != "models"]}
    pod["volumes"].append({"name": "models", "persistentVolumeClaim": {}})
    copy_tree(minilm_models / "all-MiniLM-L6-v2" / "1", claim / "1")
    contents = {"source": tmp_path, "models": tmp_path / "claim"}
    folder = tmp_path / "server"
    folder.mkdir()
    with running_container(pod, container, COMMAND, values, folder, contents=contents) as running:
        assert running.process.wait(60) == 2
    assert running.stderr.read_text().splitlines()[-1].startswith("harken-server: error: CUDA: ")


def copy_tree(source: Path, target: Path) -> None:
    subprocess.run(["cp", "-r", str(source), str(target)], check=True)


def digests(folder: Path) -> dict[str, str]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def init_container(composition: str) -> tuple[Manifest, Manifest, dict[str, str]]:
    """(pod, init container, environment); it fills the volume from which the server reads."""
    manifests = rendered(composition)
    pod = pod_of(find(manifests, "Deployment"))
    (container,) = pod["initContainers"]
    (served,) = (mount for mount in pod["containers"][0]["volumeMounts"] if mount["mountPath"] == "/models")
    assert served == {"name": "models", "mountPath": "/models", "readOnly": True}
    values = dict(environment(manifests, container))
    # As the kubelet puts variables into arguments.
    args = [argument.replace("$(MODELS_PATH)", values.get("MODELS_PATH", "")) for argument in container["args"]]
    return pod, {**container, "args": args}, values


def test_the_bundles_come_from_a_claim_whole(minilm_models: Path, tmp_path: Path) -> None:
    pod, container, values = init_container("from a claim")
    folder = tmp_path / "init"
    folder.mkdir()
    with running_container(pod, container, ["rclone"], values, folder, contents={"source": minilm_models}) as running:
        assert running.process.wait(60) == 0, running.stderr.read_text()
    assert digests(running.volumes["models"]) == digests(minilm_models) != {}


def test_the_bundles_come_from_a_bucket_whole_or_the_pod_does_not_start(minilm_models: Path, tmp_path: Path) -> None:
    pod, container, values = init_container("from a bucket")
    bucket = tmp_path / "s3" / "my-bucket"
    bucket.mkdir(parents=True)
    copy_tree(minilm_models, bucket / "models")
    # The Secret harken-s3, and a bucket that is not Amazon's.
    values |= {"AWS_ACCESS_KEY_ID": "someone", "AWS_SECRET_ACCESS_KEY": "something secret"}
    values |= {"RCLONE_CONFIG_MODELS_PROVIDER": "Rclone"}
    for name, secret, code in (("right", "something secret", 0), ("wrong", "something else", 1)):
        folder = tmp_path / name
        folder.mkdir()
        serve = ["serve", "s3", "--config=", "--auth-key", f"someone,{secret}", "--addr", "127.0.0.1:9000"]
        starting = {**container, "args": [*serve, "/source"]}
        storage = {**starting, "volumeMounts": [{"name": "source", "mountPath": "/source", "readOnly": True}]}
        storing = {**pod, "volumes": [{"name": "source", "persistentVolumeClaim": {}}]}
        (folder / "storage").mkdir()
        (folder / "init").mkdir()
        endpoint = {"RCLONE_CONFIG_MODELS_ENDPOINT": "http://127.0.0.1:9000"}
        with (
            running_container(
                storing, storage, ["rclone"], {}, folder / "storage", contents={"source": tmp_path / "s3"}
            ) as s3,
            running_container(pod, container, ["rclone"], values | endpoint, folder / "init", beside=s3) as running,
        ):
            assert (running.process.wait(60) == 0) is (code == 0), running.stderr.read_text()
        found = digests(running.volumes["models"])
        assert found == (digests(minilm_models) if code == 0 else {})
