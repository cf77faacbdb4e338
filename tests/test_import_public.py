"""Weights of the public code: every tensor lands where the same sum is done, and anything else is refused by name."""

from fractions import Fraction
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from helpers import saved

from mambamim_nets import HyMamba, HyMambaSeg, load_encoder, load_weights
from mambamim_nets.checkpoint import read_state, record_of
from mambamim_nets.import_public import convert, main, public_network
from mambamim_nets.layers.position import sincos_position

WIDTHS, DEPTHS, EXPANSIONS = (32, 64, 128, 192, 384), (2, 2, 2, 1), (2, 4, 4, 4)


def convolution(name, i, o, kernel, groups=1, bias=True):
    shapes = {f"{name}.weight": (o, i // groups, kernel, kernel, kernel)}
    return shapes | ({f"{name}.bias": (o,)} if bias else {})


def norm(name, channels):
    return {f"{name}.weight": (channels,), f"{name}.bias": (channels,)}


def residual(name, i, o):
    shapes = convolution(f"{name}.conv1", i, o, 3) | convolution(f"{name}.conv2", o, o, 3)
    shapes |= norm(f"{name}.norm1", o) | norm(f"{name}.norm2", o)
    return shapes | (convolution(f"{name}.conv3", i, o, 1) | norm(f"{name}.norm3", o) if i != o else {})


def embeddings(channels):
    """Shapes of the public CNN stage by name, as its code builds them."""
    shapes = convolution("stem", channels, 32, 3)
    for stage, (i, o) in enumerate(pairwise(WIDTHS), start=1):
        shapes |= convolution(f"expend{stage}", i, o, 3) | residual(f"encoder{stage}", o, o)
        for block in range(DEPTHS[stage - 1]):
            name, wide = f"layer{stage + 1}.{block}", EXPANSIONS[stage - 1] * o
            shapes |= convolution(f"{name}.conv1", o, o, 3, groups=o) | norm(f"{name}.norm", o)
            shapes |= convolution(f"{name}.conv2", o, wide, 1) | convolution(f"{name}.conv3", wide, o, 1)
    return {f"embeddings.{name}": shape for name, shape in shapes.items()}


def mae(layers=4, d=384, state=16, rank=24):
    shapes = {"mask_token": (1, 1, d)}
    for layer in range(layers):
        one = {"in_proj.weight": (4 * d, d), "out_proj.weight": (d, 2 * d)}
        for back in ("", "_b"):
            one |= {f"conv1d{back}.weight": (2 * d, 1, 4), f"conv1d{back}.bias": (2 * d,)}
            one |= {f"x_proj{back}.weight": (rank + 2 * state, 2 * d), f"dt_proj{back}.weight": (2 * d, rank)}
            one |= {f"dt_proj{back}.bias": (2 * d,), f"A{back}_log": (2 * d, state), f"D{back}": (2 * d,)}
        shapes |= {f"blocks.{layer}.mamba.{name}": shape for name, shape in one.items()}
        shapes |= norm(f"blocks.{layer}.norm1", d) | norm(f"blocks.{layer}.norm2", d)
        shapes |= {f"blocks.{layer}.mlp.fc1.weight": (2 * d, d), f"blocks.{layer}.mlp.fc1.bias": (2 * d,)}
        shapes |= {f"blocks.{layer}.mlp.fc2.weight": (d, 2 * d), f"blocks.{layer}.mlp.fc2.bias": (d,)}
    return {f"mae.{name}": shape for name, shape in shapes.items()}


def decoder(classes):
    shapes = residual("decoder1", 64, 32) | convolution("out.conv", 32, classes, 1)
    for number, (i, o) in {5: (384, 384), 4: (384, 192), 3: (192, 128), 2: (128, 64)}.items():
        block = f"decoder{number}.conv_block"
        shapes |= {f"decoder{number}.transp_conv.conv.weight": (i, o, 2, 2, 2)}
        shapes |= convolution(f"{block}.conv1.conv", 2 * o, o, 3, bias=False)
        shapes |= convolution(f"{block}.conv2.conv", o, o, 3, bias=False)
        shapes |= convolution(f"{block}.conv3.conv", 2 * o, o, 1, bias=False)
    return {f"decoder.{name}": shape for name, shape in shapes.items()}


def drawn(shapes, seed=0):
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for name, shape in shapes.items():
        fan = max(1, torch.Size(shape[1:]).numel())
        state[name] = torch.randn(shape, generator=generator) / fan**0.5
    return state | {"mae.pos_embed": sincos_position([6, 6, 6], 384)[None]}


@pytest.fixture(scope="module")
def encoder_state():
    return drawn(embeddings(1) | mae())


@pytest.fixture(scope="module")
def network_state(encoder_state):
    return drawn(embeddings(2) | mae() | decoder(5), seed=1)


# --- the public network, in its own names ---------------------------------------------------------


def conv(p, x, name):
    weight = p[f"{name}.weight"]
    groups = x.shape[1] // weight.shape[1]
    return F.conv3d(x, weight, p.get(f"{name}.bias"), padding=weight.shape[-1] // 2, groups=groups)


def normalised(p, x, name):
    mean, variance = x.mean(1, keepdim=True), x.var(1, correction=0, keepdim=True)
    weight, bias = (p[f"{name}.{part}"].view(1, -1, 1, 1, 1) for part in ("weight", "bias"))
    return (x - mean) / (variance + 1e-6).sqrt() * weight + bias


def two_convolutions(p, x, name):
    y = F.leaky_relu(normalised(p, conv(p, x, f"{name}.conv1"), f"{name}.norm1"), 0.01)
    y = normalised(p, conv(p, y, f"{name}.conv2"), f"{name}.norm2")
    if f"{name}.conv3.weight" in p:
        x = normalised(p, conv(p, x, f"{name}.conv3"), f"{name}.norm3")
    return F.leaky_relu(x + y, 0.01)


def cnn(p, x):
    """Return the four skips and the map at stride 16."""
    skips, x = [], conv(p, x, "embeddings.stem")
    for stage in (1, 2, 3, 4):
        x = conv(p, x, f"embeddings.expend{stage}")
        skips.append(two_convolutions(p, x, f"embeddings.encoder{stage}"))
        x = F.max_pool3d(x, 2)
        for block in range(DEPTHS[stage - 1]):
            name = f"embeddings.layer{stage + 1}.{block}"
            y = F.gelu(conv(p, normalised(p, conv(p, x, f"{name}.conv1"), f"{name}.norm"), f"{name}.conv2"))
            x = x + conv(p, y, f"{name}.conv3")
    return skips, x


def scanned(p, x, name):
    """Run one Mamba token by token, forward only: x (B, L, C)."""
    u, z = (x @ p[f"{name}.in_proj.weight"].T).chunk(2, dim=-1)
    weight, length = p[f"{name}.conv1d.weight"], x.shape[1]
    u = F.conv1d(u.transpose(1, 2), weight, p[f"{name}.conv1d.bias"], padding=3, groups=len(weight))[..., :length]
    u = F.silu(u).transpose(1, 2)
    dt, b, c = (u @ p[f"{name}.x_proj.weight"].T).split([24, 16, 16], dim=-1)
    delta = F.softplus(dt @ p[f"{name}.dt_proj.weight"].T + p[f"{name}.dt_proj.bias"])
    a, h, out = -p[f"{name}.A_log"].exp(), 0.0, []
    for t in range(length):
        h = (delta[:, t, :, None] * a).exp() * h + (delta[:, t] * u[:, t])[..., None] * b[:, t, None]
        out.append((h * c[:, t, None]).sum(-1) + p[f"{name}.D"] * u[:, t])
    return (torch.stack(out, 1) * F.silu(z)) @ p[f"{name}.out_proj.weight"].T


def tokens_mixed(p, x):
    """Mix the map at stride 16, with positions, through four layers of eps 1e-5."""
    shape = x.shape
    x = x.flatten(2).transpose(1, 2)
    x = x + sincos_position(list(shape[2:]), 384)
    for layer in range(4):
        name = f"mae.blocks.{layer}"
        y = F.layer_norm(x, (384,), p[f"{name}.norm1.weight"], p[f"{name}.norm1.bias"], 1e-5)
        x = x + scanned(p, y, f"{name}.mamba")
        y = F.layer_norm(x, (384,), p[f"{name}.norm2.weight"], p[f"{name}.norm2.bias"], 1e-5)
        y = F.gelu(y @ p[f"{name}.mlp.fc1.weight"].T + p[f"{name}.mlp.fc1.bias"])
        x = x + y @ p[f"{name}.mlp.fc2.weight"].T + p[f"{name}.mlp.fc2.bias"]
    return x.transpose(1, 2).reshape(shape)


def decoded(p, skips, x):
    for number, skip in zip((5, 4, 3, 2), reversed(skips), strict=True):
        name = f"decoder.decoder{number}"
        x = F.conv_transpose3d(x, p[f"{name}.transp_conv.conv.weight"], stride=2)
        x = torch.cat((x, skip), dim=1)
        y = F.leaky_relu(F.instance_norm(conv(p, x, f"{name}.conv_block.conv1.conv")), 0.01)
        y = F.instance_norm(conv(p, y, f"{name}.conv_block.conv2.conv"))
        x = F.leaky_relu(y + F.instance_norm(conv(p, x, f"{name}.conv_block.conv3.conv")), 0.01)
    return conv(p, two_convolutions(p, x, "decoder.decoder1"), "decoder.out.conv")


# --- tests ----------------------------------------------------------------------------------------


@torch.no_grad()
def test_an_encoder_computes_what_the_public_one_does(tmp_path, encoder_state):
    path = saved(tmp_path / "x.pth", encoder_state)
    words = convert(str(path), str(tmp_path / "encoder.pt"))
    assert "--pretrained" in words and "--network_def#bidirectional false" in words
    network = HyMambaSeg(1, 3, "base", bidirectional=False)
    report = load_encoder(network, tmp_path / "encoder.pt")
    said = {"encoder": "HyMamba", "size": "base", "bidirectional": False, "spacing": [1.5, 1.5, 1.5]}
    assert said.items() <= report.record.items()
    assert {layer.norm1.eps for layer in network.encoder.mamba} == {1e-5}
    x = torch.rand(1, 1, 32, 16, 48, generator=torch.Generator().manual_seed(2))
    skips, deepest = cnn(encoder_state, x)
    for found, expected in zip(network.encoder(x), [*skips, tokens_mixed(encoder_state, deepest)], strict=True):
        torch.testing.assert_close(found, expected, atol=2e-4, rtol=2e-4)


@torch.no_grad()
def test_a_segmentation_network_computes_what_the_public_one_does(tmp_path, network_state):
    path = saved(tmp_path / "x.pth", {f"module.{name}": value for name, value in network_state.items()})
    assert "--checkpoint" in convert(str(path), str(tmp_path / "network.pt"))
    network = HyMambaSeg(2, 5, "base", bidirectional=False).eval()
    load_weights(network, tmp_path / "network.pt")
    x = torch.rand(1, 2, 32, 32, 16, generator=torch.Generator().manual_seed(3))
    skips, deepest = cnn(network_state, x)
    expected = decoded(network_state, skips, tokens_mixed(network_state, deepest))
    torch.testing.assert_close(network(x), expected, atol=2e-3, rtol=2e-3)


def test_the_state_of_a_pretraining_gives_its_encoder(tmp_path, encoder_state):
    whole = {f"sparse_encoder.{name}": value for name, value in encoder_state.items()}
    whole |= {"dense_decoder.proj.bias": torch.zeros(1), "mask_tokens.0": torch.zeros(1), "config": {"sbn": True}}
    whole |= {"A_interpolation": torch.zeros(1, 384, 384), "densify_projs.0.bias": torch.zeros(768)}
    path = saved(tmp_path / "x.pth", {"args": "lr", "epoch": 3, "module": whole, "optimizer": {"state": {}}})
    convert(str(path), str(tmp_path / "a.pt"))
    convert(str(saved(tmp_path / "y.pth", encoder_state)), str(tmp_path / "b.pt"))
    first, second = (read_state(tmp_path / name) for name in ("a.pt", "b.pt"))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_what_is_left_out_is_the_backward_direction_and_the_mask_token(tmp_path, encoder_state):
    network, left_out = public_network(saved(tmp_path / "x.pth", encoder_state))
    assert isinstance(network, HyMamba) and len(left_out) == 1 + 4 * 7
    assert all(name == "mae.mask_token" or "_b" in name.split("mamba.")[1] for name in left_out)
    values = list(network.state_dict().values())
    kept = [value for name, value in encoder_state.items() if name not in {*left_out, "mae.pos_embed"}]
    assert len(values) == len(kept) and sum(v.numel() for v in values) == sum(v.numel() for v in kept)


def without(state, name):
    return {key: value for key, value in state.items() if key != name}


WIDER, BROKEN = {"embeddings.expend1.bias": torch.zeros(96)}, {"mae.blocks.0.mamba.D": torch.full((768,), torch.nan)}
WRONG = {
    "a tensor missing": (lambda s: without(s, "mae.blocks.2.norm1.bias"), "missing mae.blocks.2.norm1.bias"),
    "a tensor too many": (lambda s: s | {"mae.gsc.weight": torch.zeros(1)}, "unexpected mae.gsc.weight"),
    "another depth": (lambda s: s | drawn(mae(5)), "unexpected mae.blocks.4"),
    "another width": (
        lambda s: s | {"embeddings.expend1.bias": torch.zeros(96)},
        r"is \(96,\) in the file and \(64,\)",
    ),
    "NaN": (
        lambda s: s | {"mae.blocks.0.mamba.D": torch.full((768,), torch.nan)},
        "not finite in mae.blocks.0.mamba.D",
    ),
    "integers": (lambda s: s | {"embeddings.stem.bias": torch.zeros(32).long()}, "not finite in embeddings.stem.bias"),
    "learnt positions": (lambda s: s | {"mae.pos_embed": torch.rand(1, 216, 384)}, "must be the public code's fixed"),
    "weights of another network": (lambda s: {"conv.weight": torch.zeros(1)}, "not of MambaMIM's public code"),
    "weights of this package": (lambda s: HyMamba(1, "tiny").state_dict(), "are this package's own"),
    "no tensors": (lambda s: s | {"mae.blocks.0.mamba.D": "text"}, "mae.blocks.0.mamba.D must be tensors"),
    "no state dict": (lambda s: torch.zeros(3), "they have no names at all"),
    "other objects": (lambda s: s | {"config": Fraction(1, 2)}, "cannot be read as tensors only"),
}


@pytest.mark.parametrize("fault", WRONG)
def test_other_files_are_refused_and_nothing_is_written(reliability, tmp_path, encoder_state, fault):
    change, words = WRONG[fault]
    path = saved(tmp_path / "x.pth", change(encoder_state))
    with pytest.raises(ValueError, match=words) as caught:
        convert(str(path), str(tmp_path / "encoder.pt"))
    assert sorted(file.name for file in tmp_path.iterdir()) == ["x.pth"]
    reliability("Weights", f"import of the public code's weights: {fault}", caught.value)


def test_an_output_that_exists_stays(reliability, tmp_path, encoder_state):
    path = saved(tmp_path / "x.pth", encoder_state)
    (tmp_path / "encoder.pt").write_text("mine")
    with pytest.raises(FileExistsError, match="exists; give another name") as caught:
        convert(str(path), str(tmp_path / "encoder.pt"))
    assert (tmp_path / "encoder.pt").read_text() == "mine"
    reliability("Weights", "import of the public code's weights: the output exists", caught.value)


def test_the_command_ends_with_one_sentence(monkeypatch, tmp_path, encoder_state, capsys):
    path = saved(tmp_path / "x.pth", encoder_state)
    line = ["import_public", "--weights", str(path), "--output", str(tmp_path / "encoder.pt")]
    monkeypatch.setattr("sys.argv", line)
    main()
    assert capsys.readouterr().out.startswith(f"wrote {tmp_path / 'encoder.pt'}: ")
    assert record_of(read_state(tmp_path / "encoder.pt"))["size"] == "base"
    with pytest.raises(SystemExit) as ended:
        main()
    assert str(ended.value).endswith("exists; give another name, or remove it")
    monkeypatch.setattr("sys.argv", [*line[:2], str(tmp_path / "nowhere.pth"), "--output", str(tmp_path / "y.pt")])
    with pytest.raises(SystemExit) as ended:
        main()
    assert "do not exist; give the path of a .pth file" in str(ended.value)
