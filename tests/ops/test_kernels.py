"""Work of a kernel over threads: every task is done once, whatever their number."""

import threading

import pytest
import torch

from mambamim_nets.ops import kernels


@pytest.mark.parametrize("threads", [1, 2, 3, 8])
@pytest.mark.parametrize("tasks", [1, 2, 7])
def test_every_task_is_done_once(threads, tasks):
    done, ran = torch.zeros(tasks), set()

    def kernel(first, last, parts, array):
        assert parts == 5
        ran.add((first, last))
        array[first:last] += 1

    kernels.launch(kernel, threads, tasks, 5, (done,))
    assert done.tolist() == [1] * tasks and len(ran) == min(threads, tasks)


def test_the_calling_thread_takes_a_share_and_errors_of_the_others_are_raised():
    here = threading.get_ident()

    def kernel(first, last, parts):
        if first == 0:
            assert threading.get_ident() == here
        else:
            raise ArithmeticError("of a thread")

    with pytest.raises(ArithmeticError, match="of a thread"):
        kernels.launch(kernel, 2, 2, 1, ())


def test_where_nothing_can_be_cached_a_kernel_is_compiled_all_the_same(monkeypatch):
    numba, asked = pytest.importorskip("numba"), []

    def njit(**options):
        asked.append(options.get("cache", False))
        if options.get("cache"):
            raise RuntimeError("cannot cache function: no locator available")
        return lambda kernel: kernel

    def kernel(first, last, parts):
        pass

    monkeypatch.setattr(numba, "njit", njit)
    assert kernels.compiled(kernel) is kernel and asked == [True, False]
