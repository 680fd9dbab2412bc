"""`make fuzz`: targets under atheris, each for some time.

    PYTHONPATH=tests python -m fuzz.run [--seconds 60] [TARGET ...]

What it finds lies in build/fuzz/TARGET; put it into tests/fuzz/seeds/TARGET, where the tests replay it. Ends with 1 if
anything was found.
"""

import argparse
import re
import subprocess
import sys
from pathlib import Path
from typing import Final

import atheris

_INSTRUMENTED: Final = ["harken_server", "google.protobuf.json_format", "tomllib", "uvicorn", "starlette"]
_SEEDS: Final = Path(__file__).parent / "seeds"
_BUILD: Final = Path("build") / "fuzz"
# What takes longer than that is a finding.
_INPUT_S: Final = 20


def _fuzz(name: str, seconds: int) -> None:
    """Does not return."""
    with atheris.instrument_imports(include=_INSTRUMENTED):
        from fuzz.targets import TARGETS  # noqa: PLC0415 - atheris changes modules as they are imported
    folder = _BUILD / name
    (folder / "corpus").mkdir(parents=True, exist_ok=True)
    options = [
        f"-max_total_time={seconds}", f"-timeout={_INPUT_S}", "-rss_limit_mb=4096", "-print_final_stats=1",
        f"-artifact_prefix={folder}/", "-max_len=8192", str(folder / "corpus"), str(_SEEDS / name),
    ]  # fmt: skip
    atheris.Setup([sys.argv[0], *options], TARGETS[name])
    atheris.Fuzz()


def main() -> None:
    known = sorted(path.name for path in _SEEDS.iterdir())
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=", ".join(known))
    parser.add_argument("--seconds", type=int, default=60, help="for each target")
    parser.add_argument("--here", action="store_true", help="one target, in this process, with all that libFuzzer says")
    arguments = parser.parse_args()
    names = arguments.targets or known
    if unknown := [name for name in names if name not in known]:
        parser.error(f"{', '.join(unknown)}: none of {', '.join(known)}")
    if arguments.here:
        _fuzz(names[0], arguments.seconds)
    found = [name for name in names if not _clean(name, arguments.seconds)]
    sys.exit(f"bugs found in: {', '.join(found)}" if found else 0)


def _clean(name: str, seconds: int) -> bool:
    """Run one target in a process of its own, which ends at its first finding."""
    command = [sys.executable, "-m", "fuzz.run", "--here", "--seconds", str(seconds), name]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False)
    said = done.stdout.decode(errors="replace")
    runs = re.search(r"stat::number_of_executed_units: +(\d+)", said)
    print(f"{name:14} {int(runs[1]) if runs else 0:>9,} runs, {'a bug' if done.returncode else 'no bug'}", flush=True)
    if done.returncode:
        print("\n".join(line for line in said.splitlines() if not line.startswith(("#", "INFO", "WARNING", "stat"))))
    return not done.returncode


if __name__ == "__main__":
    main()
