"""MM-UNet: its size, its scans against their definitions, its switches, deep supervision, and that it learns."""

from itertools import product

import pytest
import torch
from helpers import count, image
from monai.losses import DeepSupervisionLoss, DiceCELoss
from torch.utils._python_dispatch import TorchDispatchMode

from mambamim_nets import MMUNet
from mambamim_nets.layers.mamba import GridMixer, MambaMixer
from mambamim_nets.nets.mm_unet import MetaBlock

GRID = (2, 3, 4)
WIDTH = 8


def network(**options):
    torch.manual_seed(0)
    return MMUNet(2, 3, **{"size": "tiny", "resolutions": 4, **options})


@pytest.mark.parametrize(
    ("options", "parameters", "millions"),
    [
        ({}, 33_937_616, "33.94"),
        ({"share_directions": True}, 33_745_232, "33.75"),
        ({"resolutions": 5}, 18_245_776, "18.25"),
    ],
    ids=["6-resolutions", "shared-directions", "5-resolutions"],
)
def test_base_has_the_specified_parameters(options, parameters, millions):
    with torch.device("meta"):
        found = count(MMUNet(1, 16, **options))
    assert found == parameters and f"{found / 1e6:.2f}" == millions


def test_tiny_fits_into_20_megabytes():
    assert 4 * count(MMUNet(4, 16, size="tiny")) < 20 * 2**20


def mixer(scans, **options):
    torch.manual_seed(0)
    made = GridMixer(WIDTH, scans, d_state=3, **options)
    with torch.no_grad():  # away from the symmetric start, so that a swapped parameter would show
        for name, parameter in made.named_parameters():
            if name.startswith(("A", "D")):
                parameter += 0.3 * torch.randn_like(parameter)
    return made


def one_way(made, suffix):
    """A one-directional Mamba with the parameters of one scan."""
    plain, state = MambaMixer(WIDTH, d_state=3, bidirectional=False), made.state_dict()
    names = {name: name.replace("A_log", f"A{suffix}_log") for name in plain.state_dict()}
    for name in names:
        first, _, rest = name.partition(".")
        if first in ("conv1d", "x_proj", "dt_proj"):
            names[name] = f"{first}{suffix}.{rest}"
        elif first == "D":
            names[name] = f"D{suffix}"
    plain.load_state_dict({name: state[own] for name, own in names.items()})
    return plain


def walk(axes):
    """Raster index of every token in the order of a walk whose last axis is the fastest, by plain counting."""
    d, h, w = GRID
    sizes, order = dict(zip("dhw", GRID, strict=True)), []
    for position in product(*(range(sizes[axis]) for axis in axes)):
        at = dict(zip(axes, position, strict=True))
        order.append((at["d"] * h + at["h"]) * w + at["w"])
    assert sorted(order) == list(range(d * h * w))
    return order


@pytest.mark.parametrize("share", [False, True], ids=["own", "shared"])
@pytest.mark.parametrize("scans", [1, 2, 6])
def test_scans_equal_the_sum_of_one_directional_mambas(scans, share):
    """Out-projection and gate act on every token alone, so the sum may stand behind them."""
    made, tokens = mixer(scans, share_directions=share), image(2, 24, WIDTH)
    walks = {1: [("dhw", "")], 2: [("dhw", ""), ("dhw", "_b")]}.get(scans) or [
        (axes, f"{suffix}{back}")
        for axes, suffix in (("dhw", ""), ("hwd", "_hwd"), ("wdh", "_wdh"))
        for back in ("", "_b")
    ]
    assert len(walks) == scans
    expected = torch.zeros_like(tokens)
    with torch.no_grad():
        for axes, suffix in walks:
            order = torch.tensor(walk(axes))
            order = order.flip(0) if suffix.endswith("_b") else order
            expected[:, order] += one_way(made, "" if share else suffix)(tokens[:, order])
        torch.testing.assert_close(made(tokens, GRID), expected, atol=1e-5, rtol=1e-4)


def test_two_scans_are_vision_mamba_with_its_keys():
    made, tokens = mixer(2), image(2, 24, WIDTH)
    vim = MambaMixer(WIDTH, d_state=3, bidirectional=True)
    vim.load_state_dict(made.state_dict())
    with torch.no_grad():
        assert torch.equal(made(tokens, GRID), vim(tokens))
    assert len(list(mixer(6).parameters())) == 2 + 6 * 7
    assert list(mixer(6, share_directions=True).state_dict()) == list(mixer(1).state_dict())


def test_the_networks_scan_sees_both_ways_over_the_whole_map():
    block = MetaBlock(2, WIDTH, 1, "ssm").eval()
    x = image(1, 2, 3, 4, 5)
    changed = x.clone()
    changed[:, :, 1, 2, 3] += 1
    with torch.no_grad():
        moved = (block.ssm(block.reduce(x)) - block.ssm(block.reduce(changed))).abs().amax(1)
        assert (moved > 0).all()
        block.ssm.mixer.scans = 1
        moved = (block.ssm(block.reduce(x)) - block.ssm(block.reduce(changed))).abs().amax(1).flatten()
    assert (moved[: 20 + 10 + 3] == 0).all() and (moved[20 + 10 + 3 :] > 0).all()


class Largest(TorchDispatchMode):
    """Note the size of the largest tensor that any operation makes."""

    numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple | list) else (out,):
            if isinstance(tensor, torch.Tensor):
                self.numel = max(self.numel, tensor.numel())
        return out


@pytest.mark.parametrize("scans", [2, 6])
def test_no_tensor_holds_a_state_per_token(scans):
    grid = (8, 16, 16)
    made, tokens = GridMixer(WIDTH, scans), image(1, 2048, WIDTH).requires_grad_()
    with Largest() as largest:
        made(tokens, grid).sum().backward()
    assert largest.numel <= 2048 * 5 * WIDTH, "a (B, L, D, N) tensor would hold 2048 x 2 x 8 x 16"


def ssm_places(made):
    return {name.split(".ssm")[0] for name, _ in made.named_modules() if name.endswith(".ssm")}


@pytest.mark.parametrize(
    ("placement", "places"),
    [
        ("enc", {"down.0", "down.1"}),
        ("enc+bot", {"down.0", "down.1", "down.2"}),
        ("bot", {"down.2"}),
        ("dec", {"fuse.0", "fuse.1"}),
        ("all", {"down.0", "down.1", "down.2", "fuse.0", "fuse.1"}),
    ],
)
@pytest.mark.parametrize("block", ["ssm", "hybrid_inside", "hybrid_outside"])
def test_every_block_trains_at_every_place(block, placement, places):
    made = network(block=block, placement=placement)
    assert ssm_places(made) == places
    x = image(2, 2, 16, 8, 24)
    outputs = made(x)
    assert [tuple(out.shape) for out in outputs] == [(2, 3, 16, 8, 24), (2, 3, 8, 4, 12), (2, 3, 4, 2, 6)]
    sum(out.square().mean() for out in outputs).backward()
    assert [name for name, p in made.named_parameters() if p.grad is None or not p.grad.isfinite().all()] == []
    # after an SSM that stays near zero at the start a gradient may be tiny, but never cut off
    assert [name for name, p in made.named_parameters() if "ssm" in name and not p.grad.abs().sum() > 0] == []


@pytest.mark.parametrize("share", [False, True], ids=["own", "shared"])
@pytest.mark.parametrize("scans", [1, 2, 6])
def test_every_number_of_scans_trains(scans, share):
    made = network(scans=scans, share_directions=share)
    sum(out.square().mean() for out in made(image(1, 2, 16, 8, 24))).backward()
    assert [name for name, p in made.named_parameters() if p.grad is None] == []


def test_a_block_of_convolutions_alone_has_no_state_space():
    made = network(block="cnn")
    assert ssm_places(made) == set()
    made(image(1, 2, 16, 8, 24))[0].mean().backward()


def test_blocks_differ_in_where_the_residual_connection_is():
    x, blocks = image(1, 2, 4, 4, 4), {}
    for block in ("cnn", "ssm", "hybrid_inside", "hybrid_outside"):
        torch.manual_seed(0)
        blocks[block] = MetaBlock(2, WIDTH, 2, block)
    state = blocks["hybrid_inside"].state_dict()
    for block in ("cnn", "hybrid_outside"):
        blocks[block].load_state_dict({k: v for k, v in state.items() if k in blocks[block].state_dict()})
    for block in blocks.values():
        if hasattr(block, "ssm"):
            torch.nn.init.zeros_(block.ssm.mixer.out_proj.weight)
    leaky = torch.nn.LeakyReLU(0.01)
    with torch.no_grad():
        for name in ("ssm", "hybrid_inside"):  # a silent branch leaves the shortcut
            torch.testing.assert_close(blocks[name](x), leaky(blocks[name].project(x)))
        assert blocks["hybrid_outside"](x).abs().max() == 0
        torch.nn.init.normal_(blocks["hybrid_outside"].ssm.mixer.out_proj.weight)
        outside = blocks["hybrid_outside"]
        torch.testing.assert_close(outside(x), outside.ssm(blocks["cnn"](x)))


def test_norms_are_per_sample_and_channel():
    made = network(deep_supervision=False).eval()
    x = image(3, 2, 16, 8, 24)
    with torch.no_grad():
        torch.testing.assert_close(made(x)[1:2], made(x[1:2]), atol=1e-4, rtol=1e-4)
    block, y = MetaBlock(2, WIDTH, 1), image(2, WIDTH, 3, 4, 5)
    instance = torch.nn.InstanceNorm3d(WIDTH, affine=True)
    torch.testing.assert_close(block.norm1(y), instance(y), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("resolutions", "heads"), [(2, 1), (3, 2), (4, 3), (5, 3)])
def test_deep_supervision_is_for_training_and_has_the_finest_first(resolutions, heads):
    made, x = network(resolutions=resolutions), image(1, 2, 16, 16, 32)
    outputs = made(x)
    assert [out.shape[2:] for out in outputs] == [(16 >> i, 16 >> i, 32 >> i) for i in range(heads)]
    out = made.eval()(x)
    assert isinstance(out, torch.Tensor)
    torch.testing.assert_close(out, outputs[0])
    plain = network(resolutions=resolutions, deep_supervision=False)
    assert plain(x).shape == (1, 3, 16, 16, 32)
    assert len(plain.heads) == 1
    plain(x).mean().backward()
    assert [name for name, p in plain.named_parameters() if p.grad is None] == [], "an unused head would stop DDP"


def ball_and_slab(channels):
    """An image of three classes: background, a ball, a slab; intensities differ, the position matters not."""
    d, h, w = torch.meshgrid(torch.arange(24), torch.arange(16), torch.arange(32), indexing="ij")
    label = torch.zeros(1, 1, 24, 16, 32, dtype=torch.long)
    label[0, 0][(d - 9) ** 2 + (h - 8) ** 2 + (w - 9) ** 2 < 30] = 1
    label[0, 0][(w > 20) & (w < 26) & (d > 3)] = 2
    return label.float().sub(1).repeat(1, channels, 1, 1, 1) + 0.3 * image(1, channels, 24, 16, 32), label


@pytest.mark.slow
def test_it_overfits_one_case_under_deep_supervision():
    made, (x, label) = network(), ball_and_slab(2)
    loss = DeepSupervisionLoss(DiceCELoss(to_onehot_y=True, softmax=True))
    optimizer = torch.optim.AdamW(made.parameters(), lr=5e-3)
    for _ in range(40):
        optimizer.zero_grad()
        loss(made(x), label.float()).backward()
        optimizer.step()
    with torch.no_grad():
        found = made.eval()(x).argmax(1, keepdim=True)
    for k in range(3):
        dice = 2 * ((found == k) & (label == k)).sum() / ((found == k).sum() + (label == k).sum())
        assert dice > 0.9, f"class {k}: Dice {dice:.3f}"


def test_bfloat16_autocast_stays_near_float32_and_trains():
    # bottleneck 4^3: torch 2.13's bfloat16 convolutions on the CPU may give NaN gradients on maps two voxels wide
    made, x = network(resolutions=3), image(1, 2, 16, 16, 16)
    with torch.autocast("cpu", torch.bfloat16):
        low = made(x)
    for ours, exact in zip(low, made(x), strict=True):
        assert (ours.float() - exact).abs().mean() < 0.05 * exact.abs().mean() + 0.02
    sum(out.float().square().mean() for out in low).backward()
    assert all(p.grad.isfinite().all() for p in made.parameters())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"block": "vit"}, r"block 'vit' must be one of \('cnn', 'ssm', 'hybrid_inside', 'hybrid_outside'\)"),
        ({"placement": "mid"}, r"placement 'mid' must be one of .*'enc\+bot'"),
        ({"scans": 4}, r"scans 4 must be one of \(1, 2, 6\)"),
        ({"resolutions": 7}, "resolutions 7 must be one of"),
        ({"size": "huge"}, "size 'huge' must be one of"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_unknown_switches_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        network(**options)


def test_errors_name_value_rule_and_remedy():
    made = network()
    with pytest.raises(ValueError, match=r"\(16, 20, 16\) must be divisible by 8 .*try \(16, 24, 16\) or fewer"):
        made(image(1, 2, 16, 20, 16))
    with pytest.raises(ValueError, match=r"\(8, 8, 8\) must leave more than one voxel.*try \(16, 8, 8\)"):
        made(image(1, 2, 8, 8, 8))
    with pytest.raises(ValueError, match=r"\(1, 1, 16, 16, 16\) must be \(B, 2, D, H, W\)"):
        made(image(1, 1, 16, 16, 16))
    with pytest.raises(ValueError, match="out_channels 0 must be at least 1"):
        MMUNet(1, 0)
    with pytest.raises(ValueError, match="scans 3 must be 1, 2 or 6"):
        GridMixer(8, scans=3)
