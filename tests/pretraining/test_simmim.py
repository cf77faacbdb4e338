"""SimMIM: what stands for a hidden patch, and where its prediction lies."""

import pytest
import torch
from helpers import assert_order_does_not_matter, batch

from mambamim_nets import HyMamba, SimMIM, VisionMamba

GRID = (2, 3, 2)


def simmim(encoder=VisionMamba, **options):
    torch.manual_seed(0)
    return SimMIM(encoder(2, size="tiny", **options))


@pytest.mark.parametrize("encoder", [VisionMamba, HyMamba])
def test_nothing_is_dropped(encoder):
    network, seen = simmim(encoder), []
    network.encoder.mamba[0].register_forward_hook(lambda _m, inputs, _o: seen.append(inputs[0].shape[1]))
    with torch.no_grad():
        network(*batch(GRID, samples=2, ratio=0.75))
    assert seen == [12]


def test_a_vision_mamba_sees_the_mask_token_in_place_of_hidden_patches():
    network = simmim()
    x, visible = batch(GRID, samples=2, ratio=0.75)
    seen = []
    hook = network.encoder.mamba[0].register_forward_hook(lambda _m, inputs, _o: seen.append(inputs[0]))
    with torch.no_grad():
        network(x, visible)
        network.encoder.encode(x)
        network.encoder.encode(torch.zeros_like(x))
    hook.remove()
    masked, dense, bias = seen
    kept = visible.flatten(1)
    torch.testing.assert_close(masked[kept], dense[kept])
    expected = bias - network.encoder.stem.bias + network.token
    torch.testing.assert_close(masked[~kept], expected[~kept])


@pytest.mark.parametrize("scan", ["hilbert", "shuffle"])
def test_predictions_lie_where_their_tokens_are_in_every_scan_order(scan):
    network, plain = simmim(scan=scan), simmim()
    assert_order_does_not_matter(network, plain, network.encoder.mamba, *batch(GRID, samples=2, ratio=0.75))
