"""One run at a time for one output: two that wrote the same part would mix what they answer."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from harken_client.files.base import BadFile


@contextmanager
def only_run(path: Path | None) -> Iterator[None]:
    """While it lasts no other run writes this output; None is stdout, which is nobody's. Raises BadFile if one does.

    FILE.lock stands beside FILE meanwhile. What holds is the lock upon it, which ends with the process, so that one
    left behind by a kill is in nobody's way.
    """
    if path is None:
        yield
        return
    lock = path.with_name(path.name + ".lock")
    held = _hold(lock)
    if held is None:
        raise BadFile(f"another run is writing {path}")
    try:
        yield
    finally:
        lock.unlink(missing_ok=True)
        os.close(held)


def _hold(lock: Path) -> int | None:
    """The file descriptor of the locked file; None if somebody else has it."""
    while True:
        opened = os.open(lock, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Whoever had it may have removed the file in between: then the name is another file's, or nobody's.
            if lock.exists() and os.path.samestat(os.fstat(opened), lock.stat()):
                return opened
        except BlockingIOError:
            os.close(opened)
            return None
        except FileNotFoundError:
            pass
        os.close(opened)
