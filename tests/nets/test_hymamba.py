"""The invariants of sparse encoding, and the published sizes."""

import pytest
import torch
import torch.nn.functional as F
from helpers import batch, count

from mambamim_nets import HyMamba, HyMambaSeg
from mambamim_nets.layers.conv import Conv3
from mambamim_nets.masking import expand_visible, random_visible
from mambamim_nets.nets.hymamba import SIZES
from mambamim_nets.ops.blocks import neighbour_table, pack, unpack

SHAPE = (32, 48, 16)
GRID = (2, 3, 1)


@pytest.fixture(scope="module")
def encoder():
    torch.manual_seed(0)
    return HyMamba(in_channels=2, size="tiny").eval()


def test_base_has_the_published_parameters():
    network = HyMambaSeg(1, 14, size="base")
    position_table = 6**3 * 384  # the public encoder stores its fixed position embedding; ours is computed for any grid
    mamba = count(network.encoder.mamba)
    assert count(network.encoder) - mamba == 16_100_608
    assert mamba + position_table == 6_624_768
    assert count(network) - count(network.encoder) == 19_115_758
    assert count(network) + position_table == 41_841_134
    assert HyMamba(size="base").widths == (64, 128, 192, 384, 384)


def test_tiny_fits_into_20_megabytes():
    assert 4 * count(HyMambaSeg(4, 16, size="tiny")) < 20 * 2**20


def test_feature_maps_have_the_documented_shapes(encoder):
    x, _ = batch(GRID)
    maps = encoder(x)
    assert [m.shape[1] for m in maps] == list(encoder.widths)
    assert [m.shape[2:] for m in maps] == [tuple(n // s for n in SHAPE) for s in (1, 2, 4, 8, 16)]


def test_hidden_voxels_change_nothing_and_are_zero(encoder):
    x, visible = batch(GRID)
    hidden = ~expand_visible(visible, 16)
    noisy = torch.where(hidden, 1e3 * torch.randn_like(x), x)
    broken = torch.where(hidden, torch.full_like(x, torch.nan), x)
    with torch.no_grad():
        clean_maps, noisy_maps, broken_maps = encoder(x, visible), encoder(noisy, visible), encoder(broken, visible)
    for stride, clean, disturbed, nan in zip((1, 2, 4, 8, 16), clean_maps, noisy_maps, broken_maps, strict=True):
        assert torch.equal(clean, disturbed) and torch.equal(clean, nan)
        kept = expand_visible(visible, 16 // stride)
        assert (clean * ~kept).abs().max() == 0
        assert (clean * kept).abs().amax(dim=(1, 2, 3, 4)).min() > 0


def test_nothing_hidden_equals_dense_bit_for_bit(encoder):
    x, _ = batch(GRID)
    with torch.no_grad():
        for dense, sparse in zip(encoder(x), encoder(x, torch.ones(4, 1, *GRID, dtype=torch.bool)), strict=True):
            assert torch.equal(dense, sparse)


def test_block_path_with_everything_visible_equals_dense(encoder):
    x, _ = batch(GRID, samples=2)
    visible = torch.ones(2, 1, *GRID, dtype=torch.bool)
    with torch.no_grad():
        skips, deepest = encoder._convolve(pack(x, visible), neighbour_table(visible), (1, 2, 4, 8))
        dense_skips, dense_deepest = encoder._convolve(x, None, (1, 2, 4, 8))
    for stride in skips:
        torch.testing.assert_close(unpack(skips[stride], visible), dense_skips[stride], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(unpack(deepest, visible), dense_deepest, atol=1e-5, rtol=1e-5)


def test_state_dict_is_the_same_for_sparse_and_dense_use():
    network = HyMamba(size="tiny")
    before = list(network.state_dict())
    network(torch.randn(1, 1, 32, 32, 16), random_visible(1, (2, 2, 1), 0.5))
    assert list(network.state_dict()) == before == list(HyMamba(size="tiny").state_dict())


class DenseMasked(HyMamba):
    """The definition, SparseOp(S, M) = Operator(S) * M: dense operators, each followed by the mask."""

    def masked_features(self, x, visible):
        def times(y):
            return y * expand_visible(visible, y.shape[2] // visible.shape[2]).to(y.dtype)

        hooks = [
            module.register_forward_hook(lambda _m, _i, out: times(out))
            for module in self.modules()
            if isinstance(module, Conv3 | torch.nn.Conv3d | torch.nn.LayerNorm) and not self._in_mamba(module)
        ]
        try:
            x, skips = self.stem(times(x)), []
            for widen, skip, blocks in zip(self.widen, self.skips, self.stages, strict=True):
                x = widen(x)
                skips.append(times(skip(x)))
                x = F.max_pool3d(x, 2)
                for block in blocks:
                    x = times(block(x))
        finally:
            for hook in hooks:
                hook.remove()
        return [*skips, x]

    def _in_mamba(self, module):
        return any(module is inner for inner in self.mamba.modules())


def test_sparse_features_equal_dense_times_mask_with_all_gradients():
    torch.manual_seed(1)
    reference = DenseMasked(in_channels=2, size="tiny")
    x, visible = batch(GRID, seed=1, samples=2)
    results = []
    for sparse in (True, False):
        reference.zero_grad()
        image = x.clone().requires_grad_()
        if sparse:
            skips, deepest = reference._convolve(pack(image, visible), neighbour_table(visible), (1, 2, 4, 8))
            maps = [unpack(blocks, visible) for blocks in (*skips.values(), deepest)]
        else:
            maps = reference.masked_features(image, visible)
        weighted = [m * torch.linspace(0.5, 1.5, m.shape[1]).view(1, -1, 1, 1, 1) for m in maps]
        sum(m.square().mean() for m in weighted).backward()
        grads = {n: p.grad.clone() for n, p in reference.named_parameters() if p.grad is not None}
        results.append(([m.detach() for m in maps], image.grad.clone(), grads))
    (ours, our_image, our_grads), (dense, dense_image, dense_grads) = results
    for a, b in zip(ours, dense, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(our_image, dense_image, atol=1e-5, rtol=1e-3)
    convolutional = {n for n, _ in reference.named_parameters() if not n.startswith("mamba.")}
    assert our_grads.keys() == dense_grads.keys() == convolutional
    for name, grad in our_grads.items():
        torch.testing.assert_close(
            grad, dense_grads[name], atol=1e-5, rtol=1e-3, msg=lambda m, name=name: f"{name}: {m}"
        )


def test_hidden_voxels_are_not_computed(encoder):
    seen = []
    hook = encoder.stem.register_forward_hook(lambda _m, _i, out: seen.append(out.numel()))
    x, visible = batch(GRID)
    encoder(x, visible)
    encoder(x)
    hook.remove()
    assert seen[0] * 2 == seen[1]


def test_mamba_sees_exactly_the_visible_tokens(encoder):
    x, visible = batch(GRID, samples=4, ratio=0.5)
    seen = []
    hook = encoder.mamba[0].register_forward_hook(lambda _m, inputs, _o: seen.append(inputs[0].shape))
    encoder(x, visible)
    hook.remove()
    assert seen == [(4, 3, encoder.widths[-1])]


@pytest.mark.parametrize("scan", ["raster", "zigzag", "hilbert", "shuffle"])
def test_every_scan_order_keeps_positions(scan):
    torch.manual_seed(0)
    network = HyMamba(size="tiny", scan=scan).eval()
    for layer in network.mamba:
        torch.nn.init.zeros_(layer.mixer.out_proj.weight)  # without mixing, the order must not matter
    plain = HyMamba(size="tiny").eval()
    plain.load_state_dict(network.state_dict())
    x = torch.randn(1, 1, 48, 32, 48)
    visible = random_visible(1, (3, 2, 3), 0.5)
    with torch.no_grad():
        for mask in (None, visible):
            torch.testing.assert_close(network(x, mask)[-1], plain(x, mask)[-1], atol=1e-5, rtol=1e-5)


def test_segmentation_on_a_non_cubic_input_with_gradients():
    network = HyMambaSeg(2, 3, size="tiny")
    out = network(torch.randn(2, 2, 16, 32, 48))
    assert out.shape == (2, 3, 16, 32, 48)
    out.square().mean().backward()
    assert not [name for name, p in network.named_parameters() if p.grad is None]


def test_errors_name_value_and_remedy(encoder):
    with pytest.raises(ValueError, match=r"\(32, 48, 20\) must be divisible by 16.*try \(32, 48, 32\)"):
        encoder(torch.randn(1, 2, 32, 48, 20))
    with pytest.raises(ValueError, match=r"must be \(B, 2, D, H, W\)"):
        encoder(torch.randn(1, 1, 32, 48, 16))
    with pytest.raises(ValueError, match="'huge' is unknown"):
        HyMamba(size="huge")
    with pytest.raises(ValueError, match="spiral"):
        HyMamba(size="tiny", scan="spiral")
    assert set(SIZES) == {"base", "tiny"}
