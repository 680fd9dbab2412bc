"""The C library's heap: large blocks that are freed go back to the system, so that memory can be given back at all.

By itself glibc raises the size from which blocks are mapped one by one, up to 32 MiB, as larger ones are freed. Smaller
ones then stay in the heap of the thread that took them, and the end of such a heap is never trimmed.
"""

import ctypes
from contextlib import suppress
from functools import cache
from typing import Final

# See mallopt(3). A fixed threshold is never raised; and neither is the other one then, which is 128 KiB by itself: each
# larger block that is freed at the end of a heap would be a system call, and page faults when it is taken again.
_M_MMAP_THRESHOLD: Final = -3
_LARGE_BYTES: Final = 1 << 20
_M_TRIM_THRESHOLD: Final = -1
_KEPT_BYTES: Final = 8 << 20


@cache
def map_large_blocks() -> None:
    """From now on, in this process. Each page of a block that was just taken faults once. Without glibc: nothing."""
    with suppress(AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_M_MMAP_THRESHOLD, _LARGE_BYTES)
        mallopt(_M_TRIM_THRESHOLD, _KEPT_BYTES)


def trim() -> None:
    """Give back whole pages between small blocks too. Takes a millisecond or so. Without glibc: nothing."""
    with suppress(AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
