import pytest
import torch

from mambamim_nets import HyMamba, MambaMIM
from mambamim_nets.losses import masked_mse, patch_norm, patch_statistics, reconstruction_target
from mambamim_nets.masking import expand_visible, random_visible

pytestmark = pytest.mark.usefixtures("all_narrow")

SHAPE = (32, 48, 32)
GRID = (2, 3, 2)


def model(**switches):
    torch.manual_seed(0)
    return MambaMIM(HyMamba(in_channels=2, size="tiny"), decoder_width=64, **switches)


@pytest.mark.parametrize("fill", ["toki", "learnable"])
@pytest.mark.parametrize("masking", ["bottom_up", "independent"])
@pytest.mark.parametrize("skip", [True, False])
@pytest.mark.parametrize("target", ["patch_norm", "raw"])
def test_every_switch_trains(fill, masking, skip, target):
    network = model(fill=fill, masking=masking, skip=skip, target=target)
    out = network(torch.rand(4, 2, *SHAPE))
    assert out.loss.ndim == 0 and out.reconstruction.shape == (4, 2, *SHAPE)
    assert out.visible.flatten(1).sum(1).tolist() == [3] * 4
    out.loss.backward()
    without = {name for name, p in network.named_parameters() if p.grad is None}
    unread = ("encoder.skips.0.",) if skip else ("encoder.skips.",)
    assert without and all(name.startswith(unread) for name in without)


def test_full_transition_trains():
    network = model(transition="full")
    network(torch.rand(2, 2, *SHAPE)).loss.backward()
    assert network.toki.a.grad.abs().sum() > 0 and network.toki.delta.grad.abs().sum() > 0


def test_loss_ignores_visible_voxels_and_reads_hidden_ones():
    network = model(target="raw").eval()
    x, visible = torch.rand(2, 2, *SHAPE), random_visible(2, GRID, 0.75)
    kept = expand_visible(visible, 16)
    out = network(x, visible)
    expected = (out.reconstruction - x).square()[~kept.expand_as(x)].mean()
    torch.testing.assert_close(out.loss, expected)
    disturbed = torch.where(kept, x, x + 1)
    again = network(disturbed, visible)
    assert torch.equal(again.reconstruction, out.reconstruction), "hidden voxels leak into the reconstruction"
    assert not torch.equal(again.loss, out.loss)


def test_reconstruction_does_not_mix_samples():
    network = model().eval()
    x, visible = torch.rand(3, 2, *SHAPE), random_visible(3, GRID, 0.75)
    with torch.no_grad():
        together = network(x, visible).reconstruction
        alone = torch.cat([network(x[i : i + 1], visible[i : i + 1]).reconstruction for i in range(3)])
    torch.testing.assert_close(together, alone, atol=1e-4, rtol=1e-4)


def test_toki_fills_along_the_scan_order():
    network = model()
    network.encoder.scan = "hilbert"
    tokens = torch.randn(1, 3, network.encoder.widths[-1])
    visible = torch.zeros(1, 12, dtype=torch.bool)
    visible[0, [0, 4, 11]] = True
    filled = network.fill_tokens(tokens, visible)
    assert torch.equal(filled[:, [0, 4, 11]], tokens)
    torch.testing.assert_close(filled, network.toki(tokens, visible))


def test_toki_starts_as_a_smoothed_interpolation_of_gain_one():
    network = model()
    constant = torch.ones(1, 2, network.encoder.widths[-1])
    visible = torch.zeros(1, 8, dtype=torch.bool)
    visible[0, [0, 7]] = True
    filled = network.fill_tokens(constant, visible)
    torch.testing.assert_close(filled, torch.ones_like(filled), atol=0.03, rtol=0)


@pytest.mark.slow
def test_overfitting_rebuilds_structure_inside_hidden_patches():
    d, h, w = torch.meshgrid(*(torch.linspace(-1, 1, 32) for _ in range(3)), indexing="ij")
    x = torch.stack([(d**2 + h**2 + w**2).sqrt(), d + h * w])[None]
    visible = random_visible(1, (2, 2, 2), 0.5, torch.Generator().manual_seed(0))
    network = model()
    optimizer = torch.optim.AdamW(network.parameters(), lr=5e-3)
    for _ in range(45):
        optimizer.zero_grad()
        loss = network(x, visible).loss
        loss.backward()
        optimizer.step()
    assert loss < 0.75, "1 is what the mean of every standardised patch reaches"


def test_patch_norm_standardises_every_patch():
    x = 50 * torch.rand(2, 2, *SHAPE) + 7
    mean, std = patch_statistics(patch_norm(x))
    torch.testing.assert_close(mean, torch.zeros_like(mean), atol=1e-3, rtol=0)
    torch.testing.assert_close(std, torch.ones_like(std), atol=1e-3, rtol=0)
    assert torch.equal(reconstruction_target(x, "raw"), x)


def test_patch_norm_is_that_of_mae_over_all_channels():
    x = torch.rand(2, 2, *SHAPE) * torch.tensor([1.0, 30.0]).view(2, 1, 1, 1) + 4
    patch = x[1, :, 16:32, :16, :16]
    values = patch.flatten().double()
    deviation = (((values - values.mean()) ** 2).sum() / (values.numel() - 1) + 1e-6).sqrt()  # unbiased
    expected = ((patch.double() - values.mean()) / deviation).float()
    torch.testing.assert_close(patch_norm(x)[1, :, 16:32, :16, :16], expected, atol=2e-6, rtol=0)
    biased = ((patch.double() - values.mean()) / values.std(correction=0)).float()
    assert (expected - biased).abs().max() > 2e-5, "the test would not see the difference"


def test_masked_mse_is_zero_without_hidden_blocks():
    visible = torch.ones(1, 1, 1, 1, 1, dtype=torch.bool)
    assert masked_mse(torch.ones(1, 1, 16, 16, 16), torch.zeros(1, 1, 16, 16, 16), visible) == 0


def test_rebuild_keeps_visible_voxels():
    network = model().eval()
    x, visible = torch.rand(1, 2, *SHAPE), random_visible(1, GRID, 0.75)
    rebuilt = network.rebuild(x, network(x, visible))
    kept = expand_visible(visible, 16).expand_as(x)
    assert torch.equal(rebuilt[kept], x[kept]) and not torch.equal(rebuilt[~kept], x[~kept])


@pytest.mark.parametrize(
    ("switch", "message"),
    [
        ({"fill": "zeros"}, "fill 'zeros' must be one of"),
        ({"masking": "random"}, "masking 'random'"),
        ({"target": "hog"}, "target 'hog'"),
        ({"mask_ratio": 0.0}, "mask_ratio 0.0"),
        ({"mask_ratio": 1.0}, "mask_ratio 1.0"),
        ({"transition": "banded"}, "transition 'banded'"),
    ],
    ids=lambda v: str(v)[:20],
)
def test_unknown_switches_are_refused(switch, message):
    with pytest.raises(ValueError, match=message):
        model(**switch)


def test_decoder_width_must_halve():
    with pytest.raises(ValueError, match="decoder_width 100 must be a multiple of 8"):
        MambaMIM(HyMamba(size="tiny"), decoder_width=100)
