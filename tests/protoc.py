"""Write the Python modules of proto/ beside their sources, or into another folder.

`make proto` runs it; a test runs it into a temporary folder and compares.
"""

import sys
from importlib.resources import files
from pathlib import Path

from google.rpc import status_pb2
from grpc_tools import protoc

PROTO = Path(__file__).resolve().parents[1] / "proto"
GOOGLE = Path(str(files("grpc_tools") / "_proto"))
COMMON = Path(status_pb2.__file__).parents[2]  # holds google/rpc/status.proto


def generate(target: Path) -> None:
    """Compile every .proto under proto/ into `target`. Raises RuntimeError if protoc refuses one."""
    for source in sorted(PROTO.rglob("*.proto")):
        outputs = ["python_out", "mypy_out"]
        if "\nservice " in source.read_text():
            outputs += ["grpc_python_out", "mypy_grpc_out"]
        arguments = ["protoc", f"-I{PROTO}", f"-I{GOOGLE}", f"-I{COMMON}"]
        arguments += [f"--{output}={target}" for output in outputs]
        if protoc.main([*arguments, str(source)]):
            raise RuntimeError(f"protoc refused {source}")


if __name__ == "__main__":
    generate(Path(sys.argv[1]) if len(sys.argv) > 1 else PROTO)
