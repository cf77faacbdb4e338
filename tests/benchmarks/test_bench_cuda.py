"""On CUDA: pre-training step and whole networks against dense-masked, mamba_ssm's own block and MONAI's networks."""

import functools
import importlib.util

import pytest
import torch
from harness import compare, convolution_work, record_times, spy
from rows import NETWORKS
from torch import nn
from workloads import Pretraining, Segmentation

from mambamim_nets import HyMamba
from mambamim_nets.ops.blocks import pack
from mambamim_nets.ops.recurrence import naive, on_cpu, parallel

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
ROUNDS = 20


def assert_no_plain_loop(run):
    with spy(naive, on_cpu, parallel) as calls:
        run()
    assert not calls[naive] and not calls[on_cpu] and not calls[parallel]


def test_step(benchmark):
    pretraining = Pretraining(batch=4, decoder_width=768, device="cuda")
    ours = functools.partial(pretraining.step, amp=True)
    with spy(pack) as calls:
        work = convolution_work(ours)
    assert calls[pack] and all(len(blocks) == int(pretraining.visible.sum()) for blocks in calls[pack])
    assert work[torch.bfloat16] > 0.95 * sum(work.values())
    assert_no_plain_loop(ours)
    dense = functools.partial(pretraining.step, "dense-masked", amp=True)
    times = compare(benchmark, {"ours": ours, "dense-masked": dense}, ROUNDS, warmup=3)
    record_times(benchmark, "gpu-step", times, "ours", "dense-masked")


def with_mamba_ssm(encoder: HyMamba) -> HyMamba:
    """Put mamba_ssm's own block with the same weights in the place of every mixer."""
    from mamba_ssm import Mamba

    made = HyMamba(size="base", bidirectional=False).to("cuda")
    made.load_state_dict(encoder.state_dict())
    for layer in made.mamba:
        mixer = Mamba(encoder.widths[-1]).to("cuda")
        mixer.load_state_dict(layer.mixer.state_dict())
        layer.mixer = mixer
    return made


@pytest.mark.skipif(importlib.util.find_spec("mamba_ssm") is None, reason="needs mamba-ssm: the extra [cuda]")
def test_against_mamba_ssm(benchmark):
    torch.manual_seed(0)
    encoder = HyMamba(size="base", bidirectional=False).to("cuda")
    theirs = with_mamba_ssm(encoder)
    x = torch.rand(1, 1, 96, 96, 96, device="cuda")
    for one, other in zip(encoder(x), theirs(x), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3)

    def run(network: nn.Module) -> None:
        network.zero_grad()
        sum(feature.square().mean() for feature in network(x)).backward()

    ours = functools.partial(run, encoder)
    assert_no_plain_loop(ours)
    times = compare(benchmark, {"ours": ours, "mamba_ssm": functools.partial(run, theirs)}, ROUNDS, warmup=3)
    record_times(benchmark, "gpu-mamba", times, "ours", "mamba_ssm")


@pytest.mark.parametrize("kind", ["inference", "training step"])
def test_networks(benchmark, kind):
    networks = {name: Segmentation(name, "cuda") for name in ("base", "tiny", *NETWORKS)}
    contenders = {
        name: functools.partial(made.infer if kind == "inference" else made.train, amp=True)
        for name, made in networks.items()
    }
    for size in ("base", "tiny"):
        assert_no_plain_loop(contenders[size])
    times = compare(benchmark, contenders, ROUNDS, warmup=3)
    for size in ("base", "tiny"):
        for other in NETWORKS:
            record_times(benchmark, f"gpu-{kind}-{size}-{other}", times, size, other)
