"""Vanilla Mamba: the decoder against MONAI's UNETR, the encoder dense and masked, pre-training and fine-tuning."""

import pytest
import torch
from helpers import batch, count
from monai.losses import DiceCELoss
from monai.networks.nets import UNETR

from mambamim_nets import HyMambaSeg, MambaMIM, MambaUNETR, VisionMamba, load_encoder
from mambamim_nets.layers.position import sincos_position
from mambamim_nets.masking import expand_visible, random_visible
from mambamim_nets.nets.mamba_unetr import UNETR_SIZES

SHAPE = (32, 48, 16)
GRID = (2, 3, 1)


@pytest.fixture(scope="module")
def encoder():
    torch.manual_seed(0)
    return VisionMamba(in_channels=2, size="tiny").eval()


def test_base_is_patch_16_depth_12_width_768_with_unetrs_decoder():
    with torch.device("meta"):
        network, unetr = MambaUNETR(1, 14), UNETR(1, 14, (96, 96, 96))
        vit = count(unetr.vit)
    assert network.encoder.stem.weight.shape == (768, 1, 16, 16, 16) and len(network.encoder.mamba) == 12
    assert count(network) - count(network.encoder) == count(unetr) - vit == 4_443_310
    assert count(network.encoder) == 79_557_888 and count(network) == 84_001_198


def test_tiny_fits_into_20_megabytes():
    assert 4 * count(MambaUNETR(4, 16, size="tiny")) < 20 * 2**20


class Given(torch.nn.Module):
    """Stands for a ViT: returns features read elsewhere where UNETR looks for layers."""

    def __init__(self, maps):
        super().__init__()
        tokens = [m.flatten(2).transpose(1, 2) for m in maps]
        self.last, self.hidden = tokens[3], {3: tokens[0], 6: tokens[1], 9: tokens[2]}

    def forward(self, _):
        return self.last, self.hidden


def test_the_decoder_is_unetrs():
    torch.manual_seed(0)
    network = MambaUNETR(2, 3, size="tiny").eval()
    spec = UNETR_SIZES["tiny"]
    unetr = UNETR(2, 3, SHAPE, feature_size=spec.feature_size, hidden_size=spec.width, mlp_dim=8, num_heads=4).eval()
    names = {"encoder1": "image", "encoder2": "skips.0", "encoder3": "skips.1", "encoder4": "skips.2"}
    names |= {"decoder5": "up.0", "decoder4": "up.1", "decoder3": "up.2", "decoder2": "up.3", "out.conv.conv": "out"}
    ours, state = network.state_dict(), unetr.state_dict()
    for theirs, own in names.items():
        for key in [key for key in state if key.startswith(f"{theirs}.")]:
            state[key] = ours[key.replace(theirs, own, 1)]
    unetr.load_state_dict(state)
    x, _ = batch(GRID, samples=2)
    with torch.no_grad():
        unetr.vit = Given(network.encoder(x))
        torch.testing.assert_close(network(x), unetr(x), atol=1e-4, rtol=1e-4)


def test_tokens_are_a_patch_convolution_plus_position(encoder):
    x, _ = batch(GRID)
    seen = []
    hook = encoder.mamba[0].register_forward_hook(lambda _m, inputs, _o: seen.append(inputs[0]))
    with torch.no_grad():
        encoder(x)
        expected = encoder.stem(x).flatten(2).transpose(1, 2) + sincos_position(list(GRID), 128)
    hook.remove()
    torch.testing.assert_close(seen[0], expected, atol=1e-5, rtol=1e-5)


def test_features_are_those_after_each_quarter_of_the_layers(encoder):
    x, _ = batch(GRID, samples=2)
    seen = []
    hooks = [layer.register_forward_hook(lambda _m, _i, out: seen.append(out)) for layer in encoder.mamba]
    with torch.no_grad():
        maps = encoder(x)
    for hook in hooks:
        hook.remove()
    with torch.no_grad():
        expected = [*seen[:-1], encoder.norm(seen[-1])]
    assert len(maps) == len(expected) == 4
    for found, tokens in zip(maps, expected, strict=True):
        assert torch.equal(found, tokens.transpose(1, 2).unflatten(2, GRID))


def test_hidden_voxels_change_nothing_and_never_enter(encoder):
    x, visible = batch(GRID)
    hidden = ~expand_visible(visible, 16)
    seen = []
    hook = encoder.mamba[0].register_forward_hook(lambda _m, inputs, _o: seen.append(inputs[0].shape))
    with torch.no_grad():
        clean = encoder.encode(x, visible)
        broken = encoder.encode(torch.where(hidden, torch.full_like(x, torch.nan), x), visible)
    hook.remove()
    assert seen == [(4, 3, 128)] * 2
    assert torch.equal(clean.tokens, broken.tokens) and clean.skips == {}
    assert clean.tokens.isfinite().all()


@pytest.mark.parametrize("scan", ["raster", "zigzag", "hilbert", "shuffle"])
def test_every_scan_order_keeps_positions_dense_and_masked(scan):
    torch.manual_seed(0)
    network, plain = (VisionMamba(size="tiny", scan=kind).eval() for kind in (scan, "raster"))
    for layer in network.mamba:
        torch.nn.init.zeros_(layer.mixer.out_proj.weight)  # without mixing, neither order nor mask matter
    plain.load_state_dict(network.state_dict())
    x, visible = torch.randn(2, 1, 48, 32, 48), random_visible(2, (3, 2, 3), 0.5)
    with torch.no_grad():
        for found, expected in zip(network(x), plain(x), strict=True):
            torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
        encoding, dense = network.encode(x, visible), plain.encode(x).tokens
    kept = visible.flatten(1)[:, encoding.order]
    torch.testing.assert_close(encoding.tokens.flatten(0, 1), dense[:, encoding.order][kept], atol=1e-5, rtol=1e-5)


def test_nothing_hidden_equals_dense_bit_for_bit(encoder):
    x, _ = batch(GRID)
    with torch.no_grad():
        dense, sparse = encoder.encode(x), encoder.encode(x, torch.ones(4, 1, *GRID, dtype=torch.bool))
    assert torch.equal(dense.tokens, sparse.tokens)


@pytest.mark.parametrize("fill", ["toki", "learnable"])
def test_pre_training_reaches_every_parameter(fill):
    model = MambaMIM(VisionMamba(2, size="tiny"), fill=fill, decoder_width=64)
    assert not model.skip
    out = model(torch.rand(2, 2, 32, 32, 16))
    assert out.reconstruction.shape == (2, 2, 32, 32, 16)
    out.loss.backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []


@pytest.mark.slow
def test_pre_training_loss_falls_and_ignores_hidden_voxels():
    torch.manual_seed(0)
    d, h, w = torch.meshgrid(*(torch.linspace(-1, 1, 32) for _ in range(3)), indexing="ij")
    x = torch.stack([(d**2 + h**2 + w**2).sqrt(), d + h * w])[None]
    visible = random_visible(1, (2, 2, 2), 0.5, torch.Generator().manual_seed(0))
    model = MambaMIM(MambaUNETR(2, 3, size="tiny").encoder, decoder_width=64)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for _ in range(45):
        optimizer.zero_grad()
        loss = model(x, visible).loss
        loss.backward()
        optimizer.step()
    assert loss < 0.75, "1 is what the mean of every standardised patch reaches"
    disturbed = torch.where(expand_visible(visible, 16), x, x + 1)
    with torch.no_grad():
        assert torch.equal(model(disturbed, visible).reconstruction, model(x, visible).reconstruction)


def test_pre_trained_weights_move_into_the_segmentation_network(tmp_path):
    torch.manual_seed(0)
    model = MambaMIM(VisionMamba(1, size="tiny", scan="hilbert"), decoder_width=64)
    torch.manual_seed(1)
    network = MambaUNETR(1, 3, size="tiny", scan="hilbert")
    before = {key: value.clone() for key, value in network.state_dict().items() if not key.startswith("encoder.")}
    for name, state in (("whole.pt", model.state_dict()), ("encoder.pt", model.encoder.state_dict())):
        torch.save(state, tmp_path / name)
        assert load_encoder(network, tmp_path / name).tensors == len(model.encoder.state_dict())
    for key, value in model.encoder.state_dict().items():
        assert torch.equal(network.encoder.state_dict()[key], value), key
    for key, value in before.items():
        assert torch.equal(network.state_dict()[key], value), key
    load_encoder(VisionMamba(1, size="tiny"), tmp_path / "encoder.pt")
    wider = MambaUNETR(3, 3, size="tiny")
    with pytest.raises(ValueError, match=r"image channels differs; .*adapt_input=True"):
        load_encoder(wider, tmp_path / "encoder.pt")
    assert "from 1 to 3 input channels" in load_encoder(wider, tmp_path / "encoder.pt", adapt_input=True).adapted
    x = torch.randn(1, 1, 16, 32, 16)
    with torch.no_grad():
        ours, theirs = wider.encoder.stem(x.expand(-1, 3, -1, -1, -1)), model.encoder.stem(x)
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


def test_weights_of_another_network_or_size_are_refused_with_the_remedy(tmp_path):
    torch.save(MambaUNETR(1, 3, size="tiny").state_dict(), tmp_path / "tiny.pt")
    with pytest.raises(ValueError, match="holds a VisionMamba, the network needs a HyMamba: choose the network"):
        load_encoder(HyMambaSeg(1, 3, size="tiny"), tmp_path / "tiny.pt")
    with torch.device("meta"):
        base = MambaUNETR(1, 3, size="base")
    with pytest.raises(ValueError, match="holds size 'tiny', the network is size 'base': use --size tiny"):
        load_encoder(base, tmp_path / "tiny.pt")


def test_segmentation_on_a_non_cubic_input_with_gradients():
    network = MambaUNETR(2, 3, size="tiny")
    out = network(torch.randn(2, 2, 16, 32, 48))
    assert out.shape == (2, 3, 16, 32, 48)
    out.square().mean().backward()
    assert [name for name, p in network.named_parameters() if p.grad is None] == []


@pytest.mark.slow
def test_it_overfits_one_case():
    torch.manual_seed(0)
    d, h, w = torch.meshgrid(torch.arange(16), torch.arange(32), torch.arange(32), indexing="ij")
    label = torch.zeros(1, 1, 16, 32, 32, dtype=torch.long)
    label[0, 0][(d - 8) ** 2 + (h - 16) ** 2 + (w - 9) ** 2 < 40] = 1
    label[0, 0][(w > 20) & (w < 26) & (d > 3)] = 2
    x = label.float().sub(1) + 0.3 * torch.randn(label.shape)
    network = MambaUNETR(1, 3, size="tiny")
    loss, optimizer = DiceCELoss(to_onehot_y=True, softmax=True), torch.optim.AdamW(network.parameters(), lr=1e-2)
    for _ in range(25):
        optimizer.zero_grad()
        loss(network(x), label).backward()
        optimizer.step()
    with torch.no_grad():
        found = network.eval()(x).argmax(1, keepdim=True)
    for k in range(3):
        dice = 2 * ((found == k) & (label == k)).sum() / ((found == k).sum() + (label == k).sum())
        assert dice > 0.9, f"class {k}: Dice {dice:.3f}"


@pytest.mark.slow
def test_bfloat16_autocast_trains_both_ways():
    torch.manual_seed(0)
    network = MambaUNETR(1, 3, size="tiny")
    # 4^3 at stride 8: torch 2.13's bfloat16 convolutions on the CPU may give NaN gradients on maps two voxels wide
    model, x = MambaMIM(network.encoder, decoder_width=64), torch.rand(2, 1, 32, 32, 32)
    exact = network(x)
    with torch.autocast("cpu", torch.bfloat16):
        low, loss = network(x), model(x).loss
    assert (low.float() - exact).abs().mean() < 0.05 * exact.abs().mean() + 0.02
    (low.float().square().mean() + loss).backward()
    assert all(p.grad.isfinite().all() for p in [*network.parameters(), *model.parameters()])


def test_errors_name_value_and_remedy(encoder):
    x, visible = batch(GRID, samples=1)
    with pytest.raises(ValueError, match=r"\(32, 48, 20\) must be divisible by 16.*try \(32, 48, 32\)"):
        encoder(torch.randn(1, 2, 32, 48, 20))
    with pytest.raises(ValueError, match=r"must be \(B, 2, D, H, W\)"):
        encoder(torch.randn(1, 1, *SHAPE))
    with pytest.raises(ValueError, match="'huge' is unknown"):
        VisionMamba(size="huge")
    with pytest.raises(ValueError, match="spiral"):
        VisionMamba(size="tiny", scan="spiral")
    with pytest.raises(ValueError, match="out_channels 0 must be at least 1"):
        MambaUNETR(1, 0, size="tiny")
    with pytest.raises(ValueError, match=r"strides \(2, 4\) must be \(\)"):
        encoder.encode(x, visible, strides=(2, 4))
    with pytest.raises(ValueError, match="token_visible must equal visible"):
        encoder.encode(x, visible, ~visible)
    assert encoder.encode(x, visible, visible.clone()).tokens.shape == (1, 3, 128)
    with pytest.raises(ValueError, match="'independent' needs a CNN stage, which VisionMamba has not; use 'bottom_up'"):
        MambaMIM(encoder, masking="independent")
    assert set(UNETR_SIZES) == {"base", "tiny"}
