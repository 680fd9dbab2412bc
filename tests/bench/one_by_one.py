"""The same server with batching and one by one, under the same load, alternating: does batching pay here?

    .venv/bin/python tests/bench/one_by_one.py --lengths lognormal:median=40,p99=300 --concurrency 64

Prints each pair and the median ratio. Changes nothing and fails nothing: figures depend on the machine.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from support.server import RunningServer, running_server

HARKEN = str(Path(sys.executable).parent / "harken")


def load(server: RunningServer, lengths: str, concurrency: int, duration_s: float) -> dict[str, float]:
    """One run of `harken load`."""
    metrics = f"http://127.0.0.1:{server.metrics_port}/metrics"
    command = [HARKEN, "load", "--server", server.target, "--metrics", metrics, "--lengths", lengths]
    with tempfile.NamedTemporaryFile() as report:
        options = ["--concurrency", str(concurrency), "--duration", str(duration_s), "--warmup", "1"]
        subprocess.run([*command, *options, "--json", report.name], check=True, capture_output=True)
        content = json.loads(Path(report.name).read_text())
    return {
        "sequences_per_s": content["client"]["sequences_per_s"],
        "p50_ms": 1000 * content["client"]["latency"]["p50_s"],
        "p99_ms": 1000 * content["client"]["latency"]["p99_s"],
        "mean_batch": content["server"]["mean_batch_sequences"],
        "padding": content["server"]["padding_share"],
        "rss_mib": content["server"]["rss_bytes"] / (1 << 20),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=Path, default=Path("models"))
    parser.add_argument("--lengths", default="lognormal:median=40,p99=300")
    parser.add_argument("--concurrency", type=int, default=64)
    parser.add_argument("--duration", type=float, default=10.0, help="seconds of each run")
    parser.add_argument("--pairs", type=int, default=5)
    arguments = parser.parse_args()
    ratios = []
    with (
        running_server(arguments.models) as batching,
        running_server(arguments.models, "--max-batch-sequences", "1") as single,
    ):
        for pair in range(arguments.pairs):
            servers = {"batching": batching, "one by one": single}
            order = list(servers) if pair % 2 == 0 else list(reversed(servers))
            figures = {
                name: load(servers[name], arguments.lengths, arguments.concurrency, arguments.duration)
                for name in order
            }
            ratios.append(figures["batching"]["sequences_per_s"] / figures["one by one"]["sequences_per_s"])
            for name in servers:
                print(f"{name:>10}", *(f"{key} {value:.3g}" for key, value in figures[name].items()), sep="  ")
            print(f"{'ratio':>10}  {ratios[-1]:.3f}", flush=True)
    print(f"median ratio of {len(ratios)} pairs: {statistics.median(ratios):.3f}  (least {min(ratios):.3f})")


if __name__ == "__main__":
    main()
