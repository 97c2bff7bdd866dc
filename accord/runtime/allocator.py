"""glibc's allocator, set to keep the memory that training frees and allocates again in every step.

By default it returns each large tensor to Linux when it is freed; the next one of that size then costs a page fault
for every 4 kB.  Elsewhere (macOS, Windows, musl) nothing is done.
"""

from __future__ import annotations

import ctypes
import os
import sys

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD = -1, -2, -3  # malloc.h
MAX_HEAP_BLOCK = 32 * 2**20  # glibc's upper limit for blocks that are not mapped
NEVER_TRIM = 2**31 - 1  # the largest int
HEAP_GROWTH = 16 * 2**20


def keep_memory() -> bool:
    """Makes glibc keep freed memory in this process; returns whether all settings were accepted.

    Blocks of up to 32 MB come from the heap, which is grown by 16 MB at a time and not given back.  Larger ones are
    mapped and unmapped as before, so that fragmentation does not raise the peak.  Call it once, before
    the first tensor.  ``ACCORD_MALLOPT=0`` switches it off; so does a ``MALLOC_..._`` variable of the user's own.
    """
    if sys.platform != "linux" or os.environ.get("ACCORD_MALLOPT", "1") == "0":
        return False
    if any(name.startswith("MALLOC_") for name in os.environ) or "malloc" in os.environ.get("GLIBC_TUNABLES", ""):
        return False
    library = ctypes.CDLL(None)
    if not (hasattr(library, "gnu_get_libc_version") and hasattr(library, "mallopt")):
        return False
    mallopt = library.mallopt
    mallopt.argtypes, mallopt.restype = (ctypes.c_int, ctypes.c_int), ctypes.c_int
    settings = ((M_MMAP_THRESHOLD, MAX_HEAP_BLOCK), (M_TRIM_THRESHOLD, NEVER_TRIM), (M_TOP_PAD, HEAP_GROWTH))
    done = [mallopt(key, value) == 1 for key, value in settings]  # each one, also after a refusal
    return all(done)
