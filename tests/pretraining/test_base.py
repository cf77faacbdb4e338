"""What SparK, MAE and SimMIM share: what they see, what they are scored on, and where their encoders go."""

import pytest
import torch
from helpers import batch

from mambamim_nets import MAE, HyMamba, HyMambaSeg, MambaMIM, MambaUNETR, SimMIM, VisionMamba, load_encoder
from mambamim_nets.losses import patch_norm
from mambamim_nets.masking import expand_visible, random_visible

SHAPE = (32, 48, 32)
GRID = (2, 3, 2)


def spark():
    return MambaMIM(HyMamba(2, size="tiny", mamba_depth=0), mask_ratio=0.6, fill="learnable", decoder_width=64)


def mae(encoder=VisionMamba):
    return MAE(encoder(2, size="tiny"), decoder_width=48, decoder_depth=1)


METHODS = {
    "spark": spark,
    "mae": mae,
    "mae of a HyMamba": lambda: mae(HyMamba),
    "simmim": lambda: SimMIM(HyMamba(2, size="tiny")),
    "simmim of a VisionMamba": lambda: SimMIM(VisionMamba(2, size="tiny")),
}
every_method = pytest.mark.parametrize("method", METHODS)


def model(method):
    torch.manual_seed(0)
    return METHODS[method]()


@every_method
def test_hidden_voxels_are_never_read_and_visible_ones_are(method):
    network = model(method).eval()
    x, visible = batch(GRID, samples=2, ratio=0.75)
    kept = expand_visible(visible, 16).expand_as(x)
    broken = torch.where(kept, x, torch.full_like(x, torch.nan)).requires_grad_()
    out = network(broken, visible).reconstruction
    assert torch.equal(out, network(x, visible).reconstruction)
    (grad,) = torch.autograd.grad(out.square().sum(), broken)
    assert (grad[~kept] == 0).all() and (grad[kept] != 0).float().mean() > 0.9
    weights = torch.autograd.grad(network(broken, visible).reconstruction.sum(), network.encoder.stem.weight)
    assert weights[0].isfinite().all(), "what is hidden must not reach a gradient either"


@every_method
def test_the_loss_is_that_of_the_target_over_hidden_voxels_only(method):
    network = model(method).eval()
    x, visible = batch(GRID, samples=2, ratio=0.75)
    hidden = ~expand_visible(visible, 16).expand_as(x)
    out = network(x, visible)
    error = out.reconstruction - x if "simmim" in method else (out.reconstruction - patch_norm(x)).square()
    torch.testing.assert_close(out.loss, error[hidden].abs().mean())
    (grad,) = torch.autograd.grad(out.loss, out.reconstruction)
    assert (grad[~hidden] == 0).all() and (grad[hidden] != 0).all()


@every_method
def test_the_loss_falls_and_every_parameter_that_is_used_is_trained(method):
    d, h, w = torch.meshgrid(*(torch.linspace(0, 1, n) for n in SHAPE), indexing="ij")
    x = torch.stack([(d**2 + h**2 + w**2).sqrt(), d + h * w])[None]
    visible = random_visible(1, GRID, 0.5, torch.Generator().manual_seed(1))
    network = model(method)
    optimizer = torch.optim.AdamW(network.parameters(), lr=2e-3)
    losses = []
    for _ in range(8):
        optimizer.zero_grad()
        losses.append(network(x, visible).loss)
        losses[-1].backward()
        optimizer.step()
    assert losses[-1] < 0.9 * losses[0]
    without = [name for name, p in network.named_parameters() if p.grad is None]
    unread = "encoder.skips.0." if method == "spark" else "encoder.skips."
    assert all(name.startswith(unread) for name in without)
    assert bool(without) == isinstance(network.encoder, HyMamba)


@every_method
@pytest.mark.parametrize(("ratio", "kept"), [(0.25, 9), (0.5, 6), (0.9, 1)])
def test_the_mask_ratio_is_a_switch(method, ratio, kept):
    network = model(method)
    network.mask_ratio = ratio
    with torch.no_grad():
        out = network(batch(GRID, samples=3)[0])
    assert out.visible.flatten(1).sum(1).tolist() == [kept] * 3
    assert out.reconstruction.shape == (3, 2, *SHAPE)


@every_method
def test_rebuild_keeps_what_was_visible(method):
    network = model(method).eval()
    x, visible = batch(GRID, samples=2, ratio=0.75)
    rebuilt = network.rebuild(x, network(x, visible))
    kept = expand_visible(visible, 16).expand_as(x)
    assert torch.equal(rebuilt[kept], x[kept]) and not torch.equal(rebuilt[~kept], x[~kept])


@every_method
def test_the_encoder_starts_the_matching_segmentation_network(method, tmp_path):
    network = model(method)
    torch.save(network.encoder.state_dict(), tmp_path / "encoder.pt")
    if isinstance(network.encoder, VisionMamba):
        target = MambaUNETR(2, 3, size="tiny")
    else:
        target = HyMambaSeg(2, 3, size="tiny", mamba_depth=len(network.encoder.mamba))
    load_encoder(target, tmp_path / "encoder.pt")
    x = batch(GRID, samples=2)[0]
    with torch.no_grad():
        for ours, theirs in zip(target.encoder(x), network.encoder(x), strict=True):
            assert torch.equal(ours, theirs)
        assert target.eval()(x).shape == (2, 3, *SHAPE)


def test_spark_has_no_mamba_and_the_names_of_a_hymamba():
    whole, cnn = (HyMamba(size="tiny", mamba_depth=depth).state_dict() for depth in (None, 0))
    assert list(cnn) == [key for key in whole if not key.startswith("mamba.")]
    assert len(HyMamba(size="tiny", mamba_depth=5).mamba) == 5
    with pytest.raises(ValueError, match="mamba_depth -1 must be at least 0"):
        HyMamba(size="tiny", mamba_depth=-1)


@pytest.mark.parametrize("size", ["tiny", "base"])
def test_seven_blocks_at_stride_16_have_the_parameters_of_the_mamba_stage(size):
    def parameters(**depths):
        return sum(value.numel() for value in HyMamba(size=size, **depths).parameters())

    assert abs(parameters(mamba_depth=0, conv_depth=7) / parameters() - 1) < 0.03
    assert parameters(conv_depth=1) == parameters()


@pytest.mark.parametrize("conv_depth", [0, 3])
def test_blocks_at_stride_16_are_as_many_as_asked_for(conv_depth):
    network = HyMamba(size="tiny", mamba_depth=0, conv_depth=conv_depth).eval()
    assert len(network.stages[3]) == network.conv_depth == conv_depth
    x = torch.rand(1, 1, *SHAPE)
    torch.testing.assert_close(torch.jit.script(network)(x)[4], network(x)[4], atol=1e-5, rtol=1e-5)
    with pytest.raises(ValueError, match="conv_depth -1 must be at least 0"):
        HyMamba(size="tiny", conv_depth=-1)


def test_without_mamba_the_deepest_map_knows_no_positions():
    network, seen = HyMamba(size="tiny", mamba_depth=0).eval(), []
    hook = network.stages[3][0].register_forward_hook(lambda _m, _i, out: seen.append(out))
    x = torch.rand(1, 1, *SHAPE)
    with torch.no_grad():
        assert torch.equal(network(x)[4], seen[0])
    hook.remove()
    scripted = torch.jit.script(network)
    torch.testing.assert_close(scripted(x)[4], network(x)[4], atol=1e-5, rtol=1e-5)


def test_another_mamba_depth_is_refused_with_the_remedy(tmp_path):
    torch.save(HyMamba(size="tiny", mamba_depth=0).state_dict(), tmp_path / "cnn.pt")
    with pytest.raises(ValueError, match="holds 0 Mamba layers, the network has 2: use --network_def#mamba_depth 0"):
        load_encoder(HyMambaSeg(1, 3, size="tiny"), tmp_path / "cnn.pt")
    torch.save(HyMamba(size="tiny", conv_depth=3).state_dict(), tmp_path / "deep.pt")
    words = "holds 3 MedNeXt blocks at stride 16, the network has 1: use --network_def#conv_depth 3"
    with pytest.raises(ValueError, match=words):
        load_encoder(HyMambaSeg(1, 3, size="tiny"), tmp_path / "deep.pt")


def test_bad_values_are_refused():
    with pytest.raises(ValueError, match=r"mask_ratio 1 must lie in \(0, 1\)"):
        MAE(VisionMamba(size="tiny"), mask_ratio=1)
    with pytest.raises(ValueError, match="target 'hog' must be one of"):
        SimMIM(VisionMamba(size="tiny"), target="hog")


@every_method
def test_ignored_blocks_have_no_part_in_the_loss(method):
    network = model(method).eval()
    x, visible = batch(GRID, samples=2, ratio=0.75)
    ignored = torch.zeros_like(visible)
    ignored[0, 0, :, 0] = True
    scored = ~expand_visible(visible | ignored, 16).expand_as(x)
    out = network(x, visible, ignored)
    error = out.reconstruction - x if "simmim" in method else (out.reconstruction - patch_norm(x)).square()
    torch.testing.assert_close(out.loss, error[scored].abs().mean())
    assert not torch.equal(out.loss, network(x, visible).loss) and torch.equal(out.visible, visible)
    assert network(x, visible, torch.ones_like(visible)).loss == 0
