"""What `make demo` shows: a real server, a real client, a little meaning, a little load. Leaves nothing running."""

import argparse
import json
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from harken_client import Client
from rich.console import Console
from rich.table import Table

BIN = str(Path(sys.executable).parent)

SENTENCES = [
    "The cat sleeps.",
    "A kitten is napping on the warm windowsill while the rain falls outside.",
    "Dogs bark.",
    "Our neighbour's dog has been barking at the postman every single morning since last autumn.",
    "How do I reset my password?",
    "I cannot log in any more; is there a way to get back into my account?",
    "Interest rates rose.",
    "The central bank raised its key rate by a quarter of a point, surprising most of the economists who were asked.",
    "Shares fell sharply after the announcement.",
    "Bread.",
    "Mix flour, water, salt and yeast, let the dough rest overnight, and bake it in a very hot oven until it is brown.",
    "A simple recipe for pizza dough",
    "It is raining.",
    "Heavy showers are expected in the north, with sunny spells and temperatures around fifteen degrees in the south.",
    "The weather forecast for tomorrow",
    "E = mc²",
    "Energy and mass are two forms of the same thing, related by the square of the speed of light.",
    "Photosynthesis turns light into chemical energy.",
    "The goalkeeper saved a penalty.",
    "After extra time the match was decided from the spot, and the home side lost in front of sixty thousand people.",
    "She won the marathon.",
    "def add(a, b): return a + b",
    "A function that returns the sum of its two arguments",
    "Segmentation fault (core dumped)",
    "The program crashes as soon as it reads a file that is larger than the memory of the machine.",
    "Queue the long requests with the long ones.",
    "When requests of very different lengths share a batch, each pays for the longest: short sentences are padded with "
    "cells that mean nothing, the processor multiplies them all the same, and everybody waits until it is done. "
    "Batches of neighbours in length waste next to nothing.",
    "Padding is paid for.",
    "The train to the coast leaves at nine.",
    "Tickets for the ferry can be bought at the harbour office from eight in the morning until the last boat has left.",
]
QUERIES = [
    "I forgot my login",
    "baking at home",
    "monetary policy and the stock market",
    "why should similar lengths be batched together?",
]


@contextmanager
def server(models: str) -> Iterator[tuple[str, str, str]]:
    """A server on free ports: where its gRPC, its metrics and its studio are. Stopped at the end, whatever happens."""
    command = [f"{BIN}/harken-server", "--models", models, "--grpc-port", "0", "--metrics-port", "0", "--studio"]
    process = subprocess.Popen(
        [*command, "--health-port", "0", "--http-port", "0", "--drain-delay-s", "0", "--log-format", "json"],
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    try:
        for line in process.stderr:
            event = json.loads(line) if line.startswith("{") else {"event": line.rstrip()}
            if event["event"] == "listening":
                break
        else:
            sys.exit(f"the server did not start: {event['event']}")
        threading.Thread(target=process.stderr.read, daemon=True).start()  # lest it blocks on a full pipe
        metrics = f"http://127.0.0.1:{event['metrics_port']}/metrics"
        yield f"127.0.0.1:{event['grpc_port']}", metrics, f"http://127.0.0.1:{event['http_port']}/"
    finally:
        process.terminate()
        process.wait()


def main() -> None:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the server is stopped on the way out
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", default="models", help="folder of the bundles (default: %(default)s)")
    parser.add_argument("--load-s", type=float, default=10.0, help="seconds of load (default: %(default)s)")
    arguments = parser.parse_args()
    console = Console()
    console.print("[bold]== starting the server: loading, and measuring what batches cost here (a few seconds)")
    with server(arguments.models) as (target, metrics, studio), Client(target) as client:
        client.wait_ready(timeout_s=120)
        (model,) = client.models()
        console.print(
            f"[bold]== health says SERVING: {model.name}/{model.version}, {model.precision} on {model.device}"
        )

        vectors = client.encode(SENTENCES)  # float32 [n, H]
        nearest = Table(title=f"of {len(SENTENCES)} sentences, the nearest to some queries", title_justify="left")
        for column in ("query", "similarity", "sentence"):
            nearest.add_column(column)
        for query, vector in zip(QUERIES, client.encode(QUERIES), strict=True):
            similarity = vectors @ vector
            for rank, index in enumerate(np.argsort(-similarity)[:3]):
                sentence = SENTENCES[index] if len(SENTENCES[index]) <= 70 else f"{SENTENCES[index][:67]}..."
                nearest.add_row("" if rank else query, f"{similarity[index]:.2f}", sentence)
        console.print(nearest)

        console.print(
            f"[bold]== {arguments.load_s:g} s of load: 64 calls under way, lengths around 40, up to 512 tokens"
        )
        console.print(f"   watch it in a browser: {studio}#live")
        load = [f"{BIN}/harken", "load", "--server", target, "--metrics", metrics, "--concurrency", "64"]
        lengths = ["--lengths", "lognormal:median=40,p99=300", "--duration", str(arguments.load_s), "--seed", "1"]
        subprocess.run([*load, *lengths], check=True)
    console.print("[bold]== the server has drained and stopped. Where to go next:")
    console.print(
        "  make serve                       keep a server up: studio http://localhost:8000/, gRPC 8001, metrics 8002\n"
        "  .venv/bin/harken encode 'hello'  encode a line\n"
        "  .venv/bin/harken load --help     other loads\n"
        "  .venv/bin/harken attend --help   what the tokens of a text attend to, drawn\n"
        "  README.md, docs/                 a call in five lines, the settings, the metrics"
    )


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
