"""A bulk stream of 100,000 sequences in a process of its own: `python -m bench.bulk TARGET`

Each line on standard input is a command, each answered by a line: "begin" opens a stream, "count" tells how many of its
inputs have been answered and when that was, "end" leaves it.
"""

import json
import sys
import threading
import time
from itertools import islice

from bench.workloads import MODEL, W1, part
from harken_client import Client, HarkenError

INPUTS = 100_000


class Stream:
    """Sends as fast as the server reads, in a thread."""

    def __init__(self, client: Client) -> None:
        self.answered = 0
        self._left = threading.Event()
        inputs = islice(part(W1, 4096, INPUTS), INPUTS)
        self._results = client.encode_stream(inputs, ordered=False, priority="bulk", model=MODEL)
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        for result in self._results:
            if result.error is not None:
                raise result.error
            self.answered += 1
            if self._left.is_set():
                return

    def end(self) -> None:
        """Leave it, whatever is unanswered."""
        self._left.set()
        self._thread.join()


def main() -> None:
    stream: Stream | None = None
    with Client(sys.argv[1]) as client:
        for line in sys.stdin:
            command = json.loads(line)
            if command == "begin":
                stream = Stream(client)
            elif command == "end" and stream is not None:
                stream.end()
            print(json.dumps({"answered": stream.answered if stream else 0, "at_s": time.monotonic()}), flush=True)


if __name__ == "__main__":
    try:
        main()
    except HarkenError as error:
        sys.exit(str(error))
