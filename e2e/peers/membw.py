"""DRAM read bandwidth, by `membw.c` compiled on the spot."""

import ctypes
import mmap
import subprocess
import tempfile
import threading
import time
from pathlib import Path

BYTES = 2 << 30


def read_bandwidth(threads: int, repeats: int = 5) -> float:
    """Bytes per second at which `threads` threads read an array far larger than the caches; the best of `repeats`."""
    source = Path(__file__).resolve().parent / "membw.c"
    with tempfile.TemporaryDirectory() as scratch:
        library = Path(scratch) / "membw.so"
        subprocess.run(["cc", "-O3", "-march=native", "-shared", "-fPIC", "-o", library, source], check=True)
        code = ctypes.CDLL(str(library))
    code.sum.argtypes, code.sum.restype = [ctypes.c_void_p, ctypes.c_size_t], ctypes.c_uint64
    with mmap.mmap(-1, BYTES) as memory:
        if hasattr(mmap, "MADV_HUGEPAGE"):
            memory.madvise(mmap.MADV_HUGEPAGE)
        view = (ctypes.c_char * BYTES).from_buffer(memory)
        start = ctypes.addressof(view)
        ctypes.memset(start, 1, BYTES)
        part = BYTES // threads // 512 * 512
        best = 0.0
        for _ in range(repeats):
            workers = [threading.Thread(target=code.sum, args=(start + i * part, part)) for i in range(threads)]
            began = time.perf_counter()
            for worker in workers:
                worker.start()
            for worker in workers:
                worker.join()
            best = max(best, threads * part / (time.perf_counter() - began))
        del view
    return best
