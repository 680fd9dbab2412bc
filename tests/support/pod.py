"""A container of a manifest as a real process: its user, its mounts at their own paths, its network and its limits.

There is no container engine. What one does is done by hand, as root: a network namespace with an address of its own,
a mount namespace whose root is this machine's, laid over and read-only, cgroups for the limits of memory and cores, and
no capability left. What the image holds is this checkout and its environment.
"""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any, Final

from support.manifests import Manifest
from support.tools import REPOSITORY, missing, tool

_NUMBERS: Final = count()
_CGROUPS: Final = Path("/sys/fs/cgroup")
_UNITS: Final = {"Ki": 1 << 10, "Mi": 1 << 20, "Gi": 1 << 30}

# $1: an empty folder for the layers. $2: the lines "SOURCE TARGET rw|ro". $3: the files of the cgroups. $4: folders
# that the process must be able to enter. Then the command.
_SCRIPT: Final = r"""
set -eu
layers=$1 mounts=$2 cgroups=$3 enter=$4; shift 4
mount --make-rprivate /
mount -t tmpfs tmpfs "$layers"
mkdir "$layers/upper" "$layers/work" "$layers/root"
root=$layers/root
mount -t overlay overlay -o "lowerdir=/,upperdir=$layers/upper,workdir=$layers/work" "$root"
for folder in $enter; do
  # A mount of its own is not in the layer below.
  [ -n "$(ls "$root$folder")" ] || { mkdir -p "$root$folder"; mount --rbind "$folder" "$root$folder"; }
  # Who runs the checks may be alone in entering them; the layer is thrown away.
  while [ "$folder" != / ]; do chmod a+rx "$root$folder"; folder=$(dirname "$folder"); done
done
for folder in proc sys dev; do mount --rbind "/$folder" "$root/$folder"; done
echo "$mounts" | while read -r source target mode; do
  [ -n "$source" ] || continue
  if [ -d "$source" ]; then mkdir -p "$root$target"; fi
  mount --bind "$source" "$root$target"
  [ "$mode" = rw ] || mount -o remount,bind,ro "$root$target"
done
mount -o remount,bind,ro "$root"
for file in $cgroups; do echo $$ > "$file"; done
exec chroot "$root" "$@"
"""


@dataclass
class RunningPod:
    """A process, at an address of its own."""

    namespace: str
    ip: str
    process: subprocess.Popen[bytes]
    stderr: Path
    volumes: dict[str, Path] = field(default_factory=dict)

    def log(self) -> list[dict[str, Any]]:
        """Its log lines so far."""
        return [json.loads(line) for line in self.stderr.read_text().splitlines() if line.startswith("{")]

    def event(self, name: str) -> dict[str, Any]:
        """The first line of this event."""
        return next(line for line in self.log() if line["event"] == name)

    def terminate(self) -> None:
        """As the kubelet does first."""
        self.process.send_signal(signal.SIGTERM)


@contextmanager
def running_container(
    pod: Manifest,
    container: Manifest,
    program: Sequence[str],
    environment: Mapping[str, str],
    folder: Path,
    *,
    image: Mapping[str, Path] | None = None,
    contents: Mapping[str, Mapping[str, bytes] | Path] | None = None,
    beside: "RunningPod | None" = None,
    hosts: str = "",
) -> Iterator[RunningPod]:
    """Start one container of a PodSpec in `folder`, an empty one; kill it at the end.

    program      the image's entrypoint, as this checkout has it
    environment  as the manifest gives it, without that of the image
    image        folders of the image, by where they lie in it
    contents     what volumes hold, by their names: files of a Secret, or the folder that a claim is bound to
    beside       a pod whose network this one shares: between two of their own nothing is routed here
    hosts        lines for /etc/hosts, in place of the cluster's names
    """
    if os.geteuid() or not _CGROUPS.is_dir():
        missing("network and mount namespaces and cgroups need root")
    with ExitStack() as stack:
        namespace, ip = (beside.namespace, beside.ip) if beside else stack.enter_context(_network())
        volumes = {volume["name"]: _volume(volume, pod, folder, contents or {}) for volume in pod.get("volumes", [])}
        mounts = [f"{source} {target} ro" for target, source in (image or {}).items()]
        for mount in container.get("volumeMounts", []):
            mode = "ro" if mount.get("readOnly") else "rw"
            mounts.append(f"{volumes[mount['name']]} {mount['mountPath']} {mode}")
        if hosts:
            (folder / "hosts").write_text(f"127.0.0.1 localhost\n{hosts}\n")
            mounts.append(f"{folder / 'hosts'} /etc/hosts ro")
        cgroups = stack.enter_context(_limited(container["resources"]["limits"]))
        context = {**pod.get("securityContext", {}), **container["securityContext"]}
        layers = folder / "layers"
        layers.mkdir()
        enter = {str(REPOSITORY), sys.prefix, sys.base_prefix, str(Path(os.path.realpath(sys.executable)).parents[1])}
        command = [
            "nsenter", f"--net=/run/netns/{namespace}", "unshare", "--mount", "bash", "-c", _SCRIPT, "pod",
            str(layers), "\n".join(mounts), " ".join(map(str, cgroups)), " ".join(sorted(enter)),
            *_as_user(context), "env", "-i", *(f"{name}={value}" for name, value in _of_image(environment).items()),
            *program, *container.get("args", []),
        ]  # fmt: skip
        stderr = folder / "stderr"
        with stderr.open("wb") as file:
            process = subprocess.Popen(command, stdout=file, stderr=file, stdin=subprocess.DEVNULL)
        try:
            yield RunningPod(namespace, ip, process, stderr, volumes)
        finally:
            process.kill()
            process.wait()


def _of_image(environment: Mapping[str, str]) -> dict[str, str]:
    """What the image itself sets, and over it what the manifest does."""
    path = f"{Path(sys.executable).parent}:{tool('kubectl').rpartition('/')[0]}:/usr/bin:/bin"
    own = {"PATH": path, "HOME": "/nonexistent", "PYTHONDONTWRITEBYTECODE": "1"}
    if "PYTHONPATH" in os.environ:
        own["PYTHONPATH"] = os.environ["PYTHONPATH"]
    return own | dict(environment)


def _as_user(context: Manifest) -> list[str]:
    assert context["readOnlyRootFilesystem"]
    assert context["capabilities"] == {"drop": ["ALL"]}
    user, group = context["runAsUser"], context.get("runAsGroup", context["runAsUser"])
    return [
        "setpriv", f"--reuid={user}", f"--regid={group}", f"--groups={context.get('fsGroup', group)}",
        "--bounding-set=-all", "--inh-caps=-all",
        *([] if context["allowPrivilegeEscalation"] else ["--no-new-privs"]),
    ]  # fmt: skip


def _volume(volume: Manifest, pod: Manifest, folder: Path, contents: Mapping[str, Mapping[str, bytes] | Path]) -> Path:
    """The folder behind a volume, with owner and modes as the kubelet gives them."""
    name: str = volume["name"]
    group: int = pod["securityContext"]["fsGroup"]
    path = folder / "volumes" / name
    if "persistentVolumeClaim" in volume:
        claim = contents[name]
        assert isinstance(claim, Path)
        return claim
    path.mkdir(parents=True)
    os.chown(path, 0, group)
    path.chmod(0o2777)
    if "secret" in volume:
        files = contents[name]
        assert not isinstance(files, Path)
        # A link that is exchanged at once when the Secret changes.
        (path / "..1").mkdir()
        (path / "..data").symlink_to("..1")
        for file, data in files.items():
            (path / "..1" / file).write_bytes(data)
            os.chown(path / "..1" / file, 0, group)
            (path / "..1" / file).chmod(volume["secret"]["defaultMode"])
            (path / file).symlink_to(f"..data/{file}")
    else:
        assert "emptyDir" in volume, volume
    return path


@contextmanager
def _network() -> Iterator[tuple[str, str]]:
    """A namespace that only this machine reaches; (its name, its address)."""
    number = next(_NUMBERS)
    name = f"harken-{os.getpid()}-{number}"
    outer, inner = f"hk{os.getpid()}o{number}"[:15], f"hk{os.getpid()}i{number}"[:15]
    # Of the block for benchmarks between networks, which nobody routes.
    base = f"198.18.{os.getpid() % 256}.{number * 4 % 252}".rpartition(".")
    host, ip = (f"{base[0]}.{int(base[2]) + last}" for last in (1, 2))
    command = tool("ip")

    def run(*arguments: str) -> None:
        done = subprocess.run([command, *arguments], check=False, capture_output=True, text=True, timeout=30)
        if done.returncode:
            missing(f"ip {' '.join(arguments)}: {done.stderr.strip()}")

    run("netns", "add", name)
    try:
        run("link", "add", outer, "type", "veth", "peer", "name", inner, "netns", name)
        run("address", "add", f"{host}/30", "dev", outer)
        run("link", "set", outer, "up")
        run("-netns", name, "address", "add", f"{ip}/30", "dev", inner)
        for device in ("lo", inner):
            run("-netns", name, "link", "set", device, "up")
        yield name, ip
    finally:
        subprocess.run([command, "netns", "delete", name], check=False, timeout=30)


@contextmanager
def _limited(limits: Mapping[str, str]) -> Iterator[Sequence[Path]]:
    """Cgroups with these limits, version 1 or 2; the files to which a process writes itself."""
    number, suffix = limits["memory"][:-2], limits["memory"][-2:]
    memory, quota = int(number) * _UNITS[suffix], int(limits["cpu"]) * 100_000
    name = f"harken-{os.getpid()}-{next(_NUMBERS)}"
    first = (_CGROUPS / "memory").is_dir()
    folders = [_CGROUPS / kind / name for kind in ("cpu", "memory")] if first else [_CGROUPS / name]
    values = (
        {folders[0] / "cpu.cfs_quota_us": quota, folders[-1] / "memory.limit_in_bytes": memory}
        if first
        else {folders[0] / "cpu.max": f"{quota} 100000", folders[0] / "memory.max": memory}
    )
    made: list[Path] = []
    try:
        try:
            for folder in folders:
                folder.mkdir()
                made.append(folder)
            for file, value in values.items():
                file.write_text(str(value))
        except OSError as error:
            missing(f"no cgroup can be made here: {error}")
        yield [folder / "cgroup.procs" for folder in folders]
    finally:
        for folder in made:
            folder.rmdir()
