"""The command `harken-server`, also `python -m harken_server`. A signal ends it cleanly from its first moment on."""

import os
import signal
from types import FrameType


def main() -> None:
    """Exits with 0 after a drain, with 2 if the server cannot start as asked."""
    # Importing the rest takes half a second, and as a container's first process this one would not even hear a signal
    # for which it has no handler. The app puts its own in their places.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _leave)
    # To look for models, which it is about to do anyway.
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    from harken_server import app  # noqa: PLC0415  # as above

    app.main()


def _leave(_number: int, _frame: FrameType | None) -> None:
    os._exit(0)  # nothing was accepted, and whatever is being imported need not be finished


if __name__ == "__main__":
    main()
