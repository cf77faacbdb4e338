"""Speed of ops.toki against the loop that defines it: make bench."""

import pytest
import torch

from mambamim_nets.masking import random_visible
from mambamim_nets.ops.toki import naive, toki

BATCH, GRID, CHANNELS = 2, (6, 6, 6), 48


@pytest.mark.parametrize("full", [False, True], ids=["diagonal", "full"])
@pytest.mark.parametrize("implementation", [toki, naive], ids=["toki", "naive"])
def test_forward_and_backward(benchmark, implementation, full):
    generator = torch.Generator().manual_seed(0)
    visible = random_visible(BATCH, GRID, 0.75, generator=generator).flatten(1)
    kept = int(visible[0].sum())
    y = torch.randn(BATCH, kept, CHANNELS, generator=generator, requires_grad=True)
    a, b = 0.9 * torch.rand(2, CHANNELS, generator=generator)
    a, b = (torch.diag(a), torch.diag(b)) if full else (a, b)

    def step():
        implementation(y, visible, a, b).square().sum().backward()

    benchmark(step)
    assert torch.isfinite(y.grad).all()
