"""What is generated of proto/: write it, or check it and the contracts themselves.

Python modules, and the descriptors of the Open Inference Protocol, which the client loads without them. `make proto`
writes all of it beside its sources. `make lint` checks that it is what the sources give, and that buf's standard rules
hold, with the exceptions named here.
"""

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from google.rpc import status_pb2  # type: ignore[import-untyped]  # ships no types
from grpc_tools import __file__ as grpc_tools_file  # type: ignore[import-untyped]  # ships no types
from grpc_tools import protoc

PROTO = Path(__file__).resolve().parents[1] / "proto"
DESCRIBED = PROTO / "harken/oip/inference.proto"
GOOGLE = Path(grpc_tools_file).parent / "_proto"
COMMON = Path(status_pb2.__file__).parents[2]  # holds google/rpc/status.proto

BUF = """
version: v2
modules:
  - path: proto
  - path: common
    lint:
      ignore: [common]  # google's own
lint:
  use: [STANDARD]
  ignore_only:
    # Other people's protocol, with their names.
    ENUM_VALUE_PREFIX: [proto/harken/oip]
    ENUM_ZERO_VALUE_SUFFIX: [proto/harken/oip]
    PACKAGE_DIRECTORY_MATCH: [proto/harken/oip]
    PACKAGE_VERSION_SUFFIX: [proto/harken/oip]
    RPC_REQUEST_RESPONSE_UNIQUE: [proto/harken/oip]
    RPC_REQUEST_STANDARD_NAME: [proto/harken/oip]
  except:
    # The service is harken.v1.Encoder, as grpc.health.v1.Health is Health: the package says the rest.
    - SERVICE_SUFFIX
"""


def generate(target: Path) -> None:
    """Compile every .proto under proto/ into `target`. Raises RuntimeError if protoc refuses one."""
    for source in sorted(PROTO.rglob("*.proto")):
        outputs = ["python_out", "mypy_out"]
        if "\nservice " in source.read_text():
            outputs += ["grpc_python_out", "mypy_grpc_out"]
        arguments = ["protoc", f"-I{PROTO}", f"-I{GOOGLE}", f"-I{COMMON}"]
        arguments += [f"--{output}={_options(output)}{target}" for output in outputs]
        if source == DESCRIBED:
            arguments.append(f"--descriptor_set_out={(target / source.relative_to(PROTO)).with_suffix('.binpb')}")
        if protoc.main([*arguments, str(source)]):
            raise RuntimeError(f"protoc refused {source}")


def _options(output: str) -> str:
    return "quiet:" if output.startswith("mypy") else ""


def _generated(folder: Path) -> dict[Path, bytes]:
    paths = [*folder.rglob("*_pb2*.py*"), *folder.rglob("*.binpb")]
    return {path.relative_to(folder): path.read_bytes() for path in paths}


def check() -> list[str]:
    """What is not as it should be, a line each."""
    wrong = []
    with tempfile.TemporaryDirectory() as folder:
        fresh = Path(folder)
        generate(fresh)
        made, held = _generated(fresh), _generated(PROTO)
        stale = sorted(path for path in made.keys() | held.keys() if made.get(path) != held.get(path))
        wrong += [f"proto/{path} is not what its .proto gives: run make proto" for path in stale]
    with tempfile.TemporaryDirectory() as folder:
        workspace = Path(folder)
        (workspace / "buf.yaml").write_text(BUF)
        sources = shutil.ignore_patterns("*.py", "*.pyi", "*.binpb", "__pycache__")
        shutil.copytree(PROTO, workspace / "proto", ignore=sources)
        (workspace / "common/google/rpc").mkdir(parents=True)
        shutil.copy(COMMON / "google/rpc/status.proto", workspace / "common/google/rpc")
        for command in (["lint"], ["format", "proto", "--diff", "--exit-code"]):
            done = subprocess.run(["buf", *command], cwd=workspace, capture_output=True, text=True, check=False)
            if done.returncode:
                wrong.append(f"buf {command[0]} (of proto/): {done.stdout}{done.stderr}")
    return wrong


if __name__ == "__main__":
    if sys.argv[1:] == ["--check"]:
        found = check()
        sys.exit("\n".join(found) if found else 0)
    generate(PROTO)
