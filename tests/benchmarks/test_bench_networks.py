"""Whole networks at 96^3, 14 classes: inference and training step against MONAI's; one window in bf16."""

import functools
import sys

import pytest
import torch
from harness import compare, convolution_work, record_times, spy
from rows import NETWORKS
from workloads import Segmentation

from mambamim_nets.ops.norm import instance_norm
from mambamim_nets.ops.recurrence import naive, on_cpu, parallel


def assert_native(run):
    with spy(on_cpu, naive, parallel) as calls:
        run()
    assert calls[on_cpu] and "numba" in sys.modules and not sys.modules["numba"].config.DISABLE_JIT
    assert not calls[naive] and not calls[parallel]


def test_window_in_bf16(benchmark):
    window = Segmentation("base")
    bf16 = functools.partial(window.infer, amp=True)
    assert_native(bf16)
    work = convolution_work(bf16)
    share = work[torch.bfloat16] / sum(work.values())
    assert share > 0.95, f"{share:.2f} of the convolutions ran in bf16"
    times = compare(benchmark, {"bf16": bf16, "fp32": window.infer})
    record_times(benchmark, "window-bf16", times, "bf16", "fp32")


def test_training_step(benchmark):
    ours, plain = Segmentation("tiny"), Segmentation("tiny", plain_norms=True)
    with spy(instance_norm) as calls:
        ours.train(amp=True)
    assert calls[instance_norm] and all(y.dtype == torch.bfloat16 for y in calls[instance_norm])
    contenders = {
        "ours": functools.partial(ours.train, amp=True),
        "plain": functools.partial(plain.train, amp=True),
    }
    times = compare(benchmark, contenders)
    record_times(benchmark, "norm-bf16", times, "ours", "plain")


@pytest.mark.parametrize("kind", ["inference", pytest.param("training step", marks=pytest.mark.long)])
def test_networks(benchmark, kind):
    networks = {name: Segmentation(name) for name in ("base", "tiny", *NETWORKS)}
    contenders = {name: made.infer if kind == "inference" else made.train for name, made in networks.items()}
    for size in ("base", "tiny"):
        assert_native(contenders[size])
    times = compare(benchmark, contenders)
    for size in ("base", "tiny"):
        for other in NETWORKS:
            record_times(benchmark, f"net-{kind}-{size}-{other}", times, size, other)
