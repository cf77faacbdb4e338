"""Pre-training: the CNN stage, the whole step, its memory and its page faults, against dense-masked."""

import copy
import functools
import sys

import pytest
import torch
from baselines import dense_masked_cnn
from harness import compare, convolution_work, footprint, record, record_times, spy
from workloads import CNNStage, Pretraining, TokenFill

from mambamim_nets.ops.blocks import pack
from mambamim_nets.ops.interpolation import naive as naive_toki
from mambamim_nets.ops.recurrence import naive, on_cpu, parallel


def dense_work(encoder, x, visible, strides):
    """Return the multiply-adds of the dense CNN stage, counted on tensors without data."""
    encoder = copy.deepcopy(encoder).to("meta")
    return sum(convolution_work(lambda: dense_masked_cnn(encoder, x.to("meta"), visible.to("meta"), strides)).values())


def assert_packed(results, visible):
    assert results and all(len(blocks) == int(visible.sum()) for blocks in results), "blocks must be the visible ones"


@pytest.mark.parametrize("row", ["cnn", "cnn-all"])
def test_cnn_stage(benchmark, row):
    stage = CNNStage() if row == "cnn" else CNNStage(strides=(1, 2, 4, 8))
    with spy(pack) as calls:
        work = sum(convolution_work(stage.sparse).values())
    assert_packed(calls[pack], stage.visible)
    share = work / dense_work(stage.encoder, stage.x, stage.visible, stage.strides)
    assert share < 0.5, f"{share:.2f} of the dense convolutions were computed with a quarter visible"
    times = compare(benchmark, {"ours": stage.sparse, "dense-masked": stage.dense_masked})
    record_times(benchmark, row, times, "ours", "dense-masked")


def assert_fast_step(pretraining, amp):
    """Run one step and fail unless it took the visible blocks, the compiled scan and, with amp, bf16 convolutions."""
    with spy(pack, on_cpu, naive, parallel, naive_toki) as calls:
        work = convolution_work(functools.partial(pretraining.step, amp=amp))
    assert_packed(calls[pack], pretraining.visible)
    assert calls[on_cpu] and "numba" in sys.modules and not sys.modules["numba"].config.DISABLE_JIT
    assert not calls[naive] and not calls[parallel] and not calls[naive_toki]
    wanted = torch.bfloat16 if amp else torch.float32
    share = work[wanted] / sum(work.values())
    assert share > 0.95, f"{share:.2f} of the convolutions ran in {wanted}"


def test_step(benchmark):
    wide, default, toki = Pretraining(decoder_width=768), Pretraining(), TokenFill(batch=1)
    for pretraining in (wide, default):
        for amp in (False, True):
            assert_fast_step(pretraining, amp)
    contenders = {
        "step-768": wide.step,
        "step-768-bf16": functools.partial(wide.step, amp=True),
        "step-default": default.step,
        "step-default-bf16": functools.partial(default.step, amp=True),
        "dense-masked": functools.partial(wide.step, "dense-masked"),
        "toki-share": toki.run,
    }
    times = compare(benchmark, contenders)
    for row in list(contenders)[:4]:
        record_times(benchmark, row, times, row, "dense-masked")
    record_times(benchmark, "step-decoder", times, "step-default", "step-768")
    record_times(benchmark, "toki-share", times, "toki-share", "step-768")


@pytest.mark.long
def test_step_against_a_bf16_baseline(benchmark):
    pretraining = Pretraining(decoder_width=768)
    assert_fast_step(pretraining, amp=True)
    work = convolution_work(functools.partial(pretraining.step, "dense-masked", amp=True))
    assert work[torch.bfloat16] > 0.95 * sum(work.values())
    contenders = {
        "ours": functools.partial(pretraining.step, amp=True),
        "dense-masked": functools.partial(pretraining.step, "dense-masked", amp=True),
    }
    record_times(benchmark, "step-768-bf16-both", compare(benchmark, contenders), "ours", "dense-masked")


@pytest.mark.long
@pytest.mark.parametrize("batch", [2, 4])
def test_step_of_a_batch(benchmark, batch):
    pretraining = Pretraining(batch, decoder_width=768)
    for amp in (False, True):
        assert_fast_step(pretraining, amp)
    contenders = {
        "ours": pretraining.step,
        "bf16": functools.partial(pretraining.step, amp=True),
        "dense-masked": functools.partial(pretraining.step, "dense-masked"),
    }
    times = compare(benchmark, contenders)
    record_times(benchmark, f"step-batch-{batch}", times, "ours", "dense-masked")
    record_times(benchmark, f"step-batch-{batch}-bf16", times, "bf16", "dense-masked")


@pytest.mark.long
def test_compile(benchmark):
    pretraining = Pretraining()
    contenders = {"compiled": functools.partial(pretraining.step, "compiled"), "eager": pretraining.step}
    times = compare(benchmark, contenders, warmup=2)
    record_times(benchmark, "compile", times, "compiled", "eager")


@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is read from /proc")
def test_step_memory(benchmark):
    """One process each; the time of this benchmark itself means nothing."""
    measure = functools.partial(footprint, "pretraining_step", decoder_width=768)
    ours = benchmark.pedantic(measure, kwargs={"path": "sparse"})
    bf16, dense = measure(path="sparse", amp=True), measure(path="dense-masked")
    for suffix, found in (("", ours), ("-bf16", bf16)):
        for kind, one, other in zip(("total", "above"), found[:2], dense[:2], strict=True):
            record(benchmark, f"memory-{kind}{suffix}", one, other, one / other, "MiB")
    record(benchmark, "faults", ours.faults, dense.faults, ours.faults / dense.faults, "faults")
    reused, checkpointed = measure(path="sparse", reuse=True), measure(path="sparse", checkpointing=True)
    record(benchmark, "faults-reuse", reused.faults, ours.faults, reused.faults / ours.faults, "faults")
    record(benchmark, "memory-reuse", reused.total, ours.total, reused.total / ours.total, "MiB")
    ratio = checkpointed.above / ours.above
    record(benchmark, "memory-checkpointing", checkpointed.above, ours.above, ratio, "MiB")
