"""MAE: what its encoder is given, and where its decoder puts what it has decoded."""

import pytest
import torch
from helpers import assert_order_does_not_matter, batch

from mambamim_nets import MAE, VisionMamba

GRID = (2, 3, 2)


def mae(scan="raster"):
    torch.manual_seed(0)
    return MAE(VisionMamba(2, size="tiny", scan=scan), decoder_width=48, decoder_depth=1)


def test_hidden_patches_are_dropped():
    network, seen = mae(), []
    network.encoder.mamba[0].register_forward_hook(lambda _m, inputs, _o: seen.append(inputs[0].shape[1]))
    with torch.no_grad():
        network(*batch(GRID, samples=2, ratio=0.75))
    assert seen == [3]


def test_mae_decodes_positions_and_keeps_tokens_apart():
    """With a decoder that mixes nothing, equal mask tokens differ by position, and samples do not see each other."""
    network = mae().eval()
    torch.nn.init.zeros_(network.decoder[0].mixer.out_proj.weight)
    x, visible = batch(GRID, samples=2, ratio=0.75)
    with torch.no_grad():
        out = network(x, visible).reconstruction
        alone = network(x[1:], visible[1:]).reconstruction
    torch.testing.assert_close(out[1:], alone, atol=1e-5, rtol=1e-5)
    (first, second) = (~visible[0, 0]).nonzero()[:2].mul(16).tolist()
    blocks = [out[0][:, d : d + 16, h : h + 16, w : w + 16] for d, h, w in (first, second)]
    assert (blocks[0] - blocks[1]).abs().max() > 1e-3


@pytest.mark.parametrize("scan", ["hilbert", "shuffle"])
def test_reconstructions_lie_where_their_tokens_are_in_every_scan_order(scan):
    network, plain = mae(scan), mae()
    assert_order_does_not_matter(
        network, plain, [*network.encoder.mamba, *network.decoder], *batch(GRID, samples=2, ratio=0.75)
    )


@pytest.mark.parametrize("option", ["decoder_width", "decoder_depth"])
def test_a_decoder_of_nothing_is_refused(option):
    with pytest.raises(ValueError, match=f"{option} 0 must be at least 1"):
        MAE(VisionMamba(size="tiny"), **{option: 0})
