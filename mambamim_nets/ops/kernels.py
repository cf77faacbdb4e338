"""CPU kernels compiled by numba, on threads of our own: what their files share.

numba compiles on first use and caches on disk; no compiler is needed at install. A kernel takes `first, last, parts`
and arrays, runs tasks first .. last - 1 and releases the interpreter lock, so that plain threads are enough: they
survive torch.set_num_threads and, unlike an OpenMP pool, a fork. Inner loops index slices, never `low + i`: an index
that might be negative is not vectorised.
"""

import functools
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from torch import Tensor

FASTMATH = {"reassoc", "contract", "nsz"}  # sums may be reordered and products fused; nan and inf keep their meaning
SERIAL_WORK = 1 << 22  # below this many updates, a few ms, threads cost more than they save: torch's own still spin


def compiled(kernel: Callable[..., None]) -> Callable[..., None]:
    """Compile a kernel; the machine code is cached on disk where a folder for it can be written."""
    import numba

    try:
        return numba.njit(nogil=True, fastmath=FASTMATH, cache=True)(kernel)
    except RuntimeError:  # neither the package folder nor the user's cache folder can be written
        return numba.njit(nogil=True, fastmath=FASTMATH)(kernel)


_lock = threading.Lock()
_pool: ThreadPoolExecutor | None = None
_pool_size = 0


def _forget_pool() -> None:
    """Drop the pool in a forked child: its threads stayed in the parent."""
    global _lock, _pool, _pool_size
    _lock, _pool, _pool_size = threading.Lock(), None, 0


@functools.cache
def _forget_pool_after_fork() -> None:
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=_forget_pool)


def _workers(count: int) -> ThreadPoolExecutor:
    global _pool, _pool_size
    with _lock:
        if _pool is None or _pool_size < count:
            _forget_pool_after_fork()
            _pool, _pool_size = ThreadPoolExecutor(count, thread_name_prefix="mambamim"), count
        return _pool


def launch(kernel: Callable[..., None], threads: int, tasks: int, parts: int, tensors: tuple[Tensor, ...]) -> None:
    """Split the tasks of a kernel over threads; the calling thread takes the first share."""
    arrays = [tensor.detach().numpy() for tensor in tensors]
    threads = min(threads, tasks)
    if threads == 1:
        kernel(0, tasks, parts, *arrays)
        return
    cuts = [tasks * i // threads for i in range(threads + 1)]
    pool = _workers(threads - 1)
    waiting = [pool.submit(kernel, cuts[i], cuts[i + 1], parts, *arrays) for i in range(1, threads)]
    kernel(cuts[0], cuts[1], parts, *arrays)
    for future in waiting:
        future.result()
