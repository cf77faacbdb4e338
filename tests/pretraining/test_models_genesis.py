"""Models Genesis: what is restored, and where the encoder goes."""

import pytest
import torch

from mambamim_nets import HyMamba, HyMambaSeg, MambaUNETR, ModelsGenesis, VisionMamba, load_encoder

pytestmark = pytest.mark.usefixtures("all_narrow")

SHAPE = (32, 48, 32)
ENCODERS = {HyMamba: HyMambaSeg, VisionMamba: MambaUNETR}
every_encoder = pytest.mark.parametrize("encoder", ENCODERS)


@every_encoder
def test_the_loss_is_over_all_voxels_and_falls(encoder):
    torch.manual_seed(0)
    network = ModelsGenesis(encoder(1, size="tiny"))
    d, h, w = torch.meshgrid(*(torch.linspace(0, 1, n) for n in SHAPE), indexing="ij")
    target = (d + h * w)[None, None]
    x = torch.where(target > 1, 0.3, target.sqrt())
    optimizer = torch.optim.AdamW(network.parameters(), lr=2e-3)
    losses = []
    for _ in range(6):
        optimizer.zero_grad()
        out = network(x, target)
        torch.testing.assert_close(out.loss, (out.reconstruction - target).square().mean())
        out.loss.backward()
        optimizer.step()
        losses.append(out.loss)
    assert losses[-1] < 0.9 * losses[0] and out.visible is None
    assert [name for name, p in network.named_parameters() if p.grad is None] == []
    assert torch.equal(network.rebuild(x, out), out.reconstruction)


def test_ignored_voxels_have_no_part_in_the_loss():
    torch.manual_seed(0)
    network = ModelsGenesis(HyMamba(1, size="tiny")).eval()
    x, target = torch.rand(2, 2, 1, *SHAPE)
    ignored = torch.zeros(2, 1, *SHAPE, dtype=torch.bool)
    ignored[0, 0, 3:20, :, 5] = True
    out = network(x, target, ignored)
    torch.testing.assert_close(out.loss, (out.reconstruction - target)[~ignored].square().mean())
    torch.testing.assert_close(network(x, target.masked_fill(ignored, 99), ignored).loss, out.loss)
    assert network(x, target, torch.ones_like(ignored)).loss == 0


@every_encoder
def test_the_encoder_starts_the_segmentation_network(encoder, tmp_path):
    torch.manual_seed(0)
    network = ModelsGenesis(encoder(1, size="tiny", scan="zigzag"))
    assert network.encoder.scan == "zigzag"
    torch.manual_seed(1)
    for name, state in (("encoder.pt", network.encoder.state_dict()), ("whole.pt", network.state_dict())):
        torch.save(state, tmp_path / name)
        target = ENCODERS[encoder](1, 3, size="tiny")
        load_encoder(target, tmp_path / name)
        for key, value in target.encoder.state_dict().items():
            assert torch.equal(value, network.encoder.state_dict()[key])
