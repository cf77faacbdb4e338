"""nnMamba: the published sizes, each part against its definition, the switches, and that the networks learn."""

import pytest
import torch
import torch.nn.functional as F
from helpers import BUNDLES, count, image
from monai.losses import DeepSupervisionLoss, DiceCELoss
from torch.testing import assert_close

from mambamim_nets import NNMambaClassifier, NNMambaSeg, load_weights
from mambamim_nets.layers.mamba import MambaMixer
from mambamim_nets.nets.nnmamba import ChannelScale, MambaInConv, Residual, Stage

SHAPE = (32, 48, 16)


def settled(module, seed=0):
    """Put a network in evaluation mode, away from the start: batch statistics and affine weights that matter."""
    generator = torch.Generator().manual_seed(seed)
    for part in module.modules():
        if isinstance(part, torch.nn.BatchNorm3d):
            for tensor in (part.weight.data, part.running_var):
                tensor.uniform_(0.5, 1.5, generator=generator)
            for tensor in (part.bias.data, part.running_mean):
                tensor.normal_(0, 0.3, generator=generator)
    return module.eval()


def seg(out_channels=3, seed=0, **options):
    torch.manual_seed(seed)
    return settled(NNMambaSeg(2, out_channels, width=8, **options))


def inputs_of(module, run):
    """Return what a module was called with while ``run`` ran, one entry a call."""
    seen = []
    hook = module.register_forward_pre_hook(lambda _m, arguments: seen.append(arguments[0].clone()))
    try:
        run()
    finally:
        hook.remove()
    return seen


@pytest.mark.parametrize(
    ("channels", "classes", "expected"), [(1, 16, 15_959_598), (1, 6, 15_944_958), (4, 4, 15_945_270)]
)
def test_segmentation_has_the_published_parameters(channels, classes, expected):
    assert count(NNMambaSeg(channels, classes)) == expected


def test_every_stage_has_the_published_parameters():
    counts = {name: count(module) for name, module in NNMambaSeg(1, 16).named_children()}
    assert counts == {
        "stem": 28_704,
        "layer1": 652_288,
        "layer2": 2_592_768,
        "layer3": 10_338_304,
        "scale1": 162,
        "scale2": 580,
        "scale3": 2_184,
        "conv5": 1_770_240,
        "conv6": 442_752,
        "conv7": 110_784,
        "conv8": 20_832,
        "heads": 0,
    }


@pytest.mark.parametrize(
    ("channels", "block", "mamba"), [(64, 41_088, 32_640), (128, 149_760, 116_480), (256, 569_856, 437_760)]
)
def test_miccss_has_the_published_parameters(channels, block, mamba):
    made = MambaInConv(channels)
    assert (count(made), count(made.mixer)) == (block, mamba)


def test_the_classifiers_mlp_is_as_wide_as_the_network_unless_told():
    assert NNMambaClassifier(width=8).mlp[0].weight.shape == (8, 112)
    assert NNMambaClassifier(width=8, mlp_width=32).mlp[0].weight.shape == (32, 112)
    shipped = BUNDLES / "brain_cls" / "models" / "model.pt"
    load_weights(NNMambaClassifier(width=16, mlp_width=32), shipped)
    with pytest.raises(ValueError, match=r"MLP of width 32, the network one of 16: use --mlp_width 32"):
        load_weights(NNMambaClassifier(width=16), shipped)


@pytest.mark.parametrize(("seq_head", "expected"), [("none", 12_876_321), ("mamba", 12_905_633)])
@pytest.mark.parametrize("stem_scan", ["single", "css4"])
def test_classifier_has_the_published_parameters(seq_head, stem_scan, expected):
    network = NNMambaClassifier(seq_head=seq_head, stem_scan=stem_scan)
    assert count(network) == expected
    assert (network.mic.mixer.d_state, network.mic.mixer.conv1d.weight.shape) == (8, (64, 1, 4))
    if network.sequence is not None:
        assert (network.sequence.d_state, network.sequence.conv1d.weight.shape) == (8, (128, 1, 2))


class RunningSum(torch.nn.Module):
    """Stands in for Mamba: sums the past, and tells channels and tokens apart."""

    def forward(self, tokens):
        return tokens.cumsum(1) * torch.tensor([1.0, 10.0])


def test_four_way_scan_by_hand():
    block = MambaInConv(2)
    block.mixer = RunningSum()
    plain = [[1, 20], [4, 60]]
    channels = [[10, 2], [40, 6]]
    tokens = [[4, 60], [3, 40]]
    both = [[40, 6], [30, 4]]
    expected = torch.tensor([[plain, channels, tokens, both]]).float().mean(1)
    assert_close(block.scan(torch.tensor([[[1.0, 2.0], [3.0, 4.0]]])), expected, atol=0, rtol=0)
    block.siamese = False
    assert_close(block.scan(torch.tensor([[[1.0, 2.0], [3.0, 4.0]]])), torch.tensor([plain]).float(), atol=0, rtol=0)


@pytest.mark.parametrize("siamese", [True, False], ids=["css", "single"])
def test_miccss_equals_its_definition(siamese):
    torch.manual_seed(0)
    block = settled(MambaInConv(6, siamese=siamese, d_state=5)).double()
    x = image(2, 6, 2, 3, 5).double()

    def convolve(y, part):
        state = {name: value.view(-1, 1, 1, 1) for name, value in part[1].state_dict().items()}
        y = torch.einsum("oi,bidhw->bodhw", part[0].weight[:, :, 0, 0, 0], y)
        y = (y - state["running_mean"]) / (state["running_var"] + 1e-5).sqrt()
        return (y * state["weight"] + state["bias"]).clamp(min=0)

    a = convolve(x, block.enter)
    voxels = [(d, h, w) for d in range(2) for h in range(3) for w in range(5)]  # raster
    tokens = torch.stack([a[:, :, d, h, w] for d, h, w in voxels], dim=1)
    ways = []
    for last_first in (False, True) if siamese else (False,):
        for swapped in (False, True) if siamese else (False,):
            along, across = list(range(30)), list(range(6))
            along, across = along[::-1] if last_first else along, across[::-1] if swapped else across
            ways.append(block.mixer(tokens[:, along][:, :, across])[:, along][:, :, across])
    y = torch.stack(ways).mean(0)
    z = torch.zeros_like(a)
    for index, (d, h, w) in enumerate(voxels):
        z[:, :, d, h, w] = y[:, index] + a[:, :, d, h, w]
    with torch.no_grad():
        assert_close(block(x), convolve(z, block.leave), atol=1e-10, rtol=1e-10)


def test_a_stage_shares_one_miccss_that_reads_the_block_input():
    torch.manual_seed(0)
    stage = settled(Stage(4, 8, blocks=3))
    x = image(2, 4, 8, 6, 4)
    assert sum(isinstance(module, MambaMixer) for module in stage.modules()) == 1
    assert [isinstance(module, MambaMixer) for block in stage.blocks for module in block.modules()].count(True) == 0

    def bn(y, norm):
        return F.batch_norm(y, norm.running_mean, norm.running_var, norm.weight, norm.bias)

    with torch.no_grad():
        seen = inputs_of(stage.miccss, lambda: stage(x))
        down = stage.down
        y = bn(F.conv3d(x, down.conv1.weight, stride=2, padding=1), down.norm1).relu()
        shortcut = bn(F.conv3d(x, down.shortcut[0].weight, stride=2), down.shortcut[1])
        y = (bn(F.conv3d(y, down.conv2.weight, padding=1), down.norm2) + shortcut).relu()
        for block, read in zip(stage.blocks, seen, strict=True):
            assert_close(read, y, atol=1e-5, rtol=1e-5)
            inner = bn(F.conv3d(y, block.conv1.weight, padding=1), block.norm1).relu()
            inner = bn(F.conv3d(inner, block.conv2.weight, padding=1), block.norm2)
            y = (inner + stage.miccss(y) + y).relu()
        assert_close(stage(x), y, atol=1e-5, rtol=1e-5)
    assert y.shape == (2, 8, 4, 3, 2)


def test_sharing_shows_in_the_batch_statistics_and_in_the_state_dict():
    network = NNMambaSeg(1, 2, width=8)
    network(image(2, 1, 16, 16, 16))
    for stage in (network.layer1, network.layer2, network.layer3):
        assert int(stage.miccss.enter[1].num_batches_tracked) == 2  # blocks 2 and 3
        assert int(stage.down.norm1.num_batches_tracked) == 1
    keys = [name for name in network.state_dict() if name.endswith("mixer.A_log")]
    assert keys == [f"layer{level}.miccss.mixer.A_log" for level in (1, 2, 3)]


def test_channel_scaling_is_squeeze_and_excitation():
    torch.manual_seed(0)
    layer, x = ChannelScale(32), image(2, 32, 2, 3, 5)
    with torch.no_grad():
        hidden = (x.flatten(2).mean(2) @ layer.squeeze.weight.T + layer.squeeze.bias).clamp(min=0)
        scale = 1 / (1 + torch.exp(-(hidden @ layer.excite.weight.T + layer.excite.bias)))
        assert_close(layer(x), torch.einsum("bc,bcdhw->bcdhw", scale, x), atol=1e-6, rtol=1e-5)
    assert hidden.shape == (2, 2)


def test_channel_scaling_multiplies_the_skip_copy_only():
    network, x = seg(), image(1, 2, *SHAPE)
    with torch.no_grad():
        before = network.encode(x)
        for scale in (network.scale1, network.scale2, network.scale3):
            scale.excite.bias.fill_(-1e4)  # shuts every skip
        after = network.encode(x)
        read = [inputs_of(part, lambda: network(x))[0] for part in (network.conv5, network.conv6, network.conv7)]
    for ours, theirs in zip(after, before, strict=True):
        assert_close(ours, theirs, atol=0, rtol=0)
    for joined, skip in zip(read, before[2::-1], strict=True):
        assert joined.shape[2:] == skip.shape[2:]
        assert joined[:, -skip.shape[1] :].abs().max() == 0 and joined[:, : -skip.shape[1]].abs().max() > 0
    upsampled = F.interpolate(before[3], scale_factor=2, mode="trilinear", align_corners=False)
    assert_close(read[0][:, : upsampled.shape[1]], upsampled, atol=1e-6, rtol=1e-6)


def test_feature_maps_have_the_documented_shapes():
    maps = seg().encode(image(1, 2, *SHAPE))
    assert [m.shape[1] for m in maps] == [8, 16, 32, 64]
    assert [m.shape[2:] for m in maps] == [tuple(n // s for n in SHAPE) for s in (2, 4, 8, 16)]


def test_final_act_is_a_relu_and_off_by_default():
    plain, published, x = seg(), seg(final_act=True), image(1, 2, *SHAPE)
    published.load_state_dict(plain.state_dict())
    with torch.no_grad():
        logits = plain(x)
        assert logits.min() < 0 < logits.max()
        assert_close(published(x), logits.clamp(min=0), atol=0, rtol=0)


def test_deep_supervision_in_training_only():
    plain, deep, x = seg(), seg(deep_supervision=True), image(2, 2, *SHAPE)
    state = deep.state_dict()
    assert set(state) - set(plain.state_dict()) == {
        f"heads.{i}.{part}" for i in range(3) for part in ("weight", "bias")
    }
    plain.load_state_dict({name: state[name] for name in plain.state_dict()})
    with torch.no_grad():
        assert_close(deep(x), plain(x), atol=0, rtol=0)
    deep.train()
    seen = {name: inputs_of(module, lambda: deep(x)) for name, module in (("1", deep.heads[0]), ("4", deep.heads[2]))}
    assert seen["1"][0].shape == (2, 8, 16, 24, 8) and seen["4"][0].shape == (2, 32, 4, 6, 2)
    logits = deep(x)
    assert isinstance(logits, list)
    assert [tuple(y.shape[2:]) for y in logits] == [tuple(n // s for n in SHAPE) for s in (1, 2, 4, 8)]
    assert {tuple(y.shape[:2]) for y in logits} == {(2, 3)}
    target = torch.randint(0, 3, (2, 1, *SHAPE), generator=torch.Generator().manual_seed(0)).float()
    DeepSupervisionLoss(DiceCELoss(to_onehot_y=True, softmax=True))(logits, target).backward()
    assert not [name for name, p in deep.named_parameters() if p.grad is None]
    # the heads of the nnU-Net variant: its 15,876,318 are ours less the second 1^3 convolution of every MICCSS
    variant = NNMambaSeg(1, 16, deep_supervision=True)
    leaving = sum(count(stage.miccss.leave) for stage in (variant.layer1, variant.layer2, variant.layer3))
    assert count(variant) - leaving == 15_876_318


def classifier(**options):
    torch.manual_seed(0)
    return settled(NNMambaClassifier(2, 3, width=8, **options))


def test_sequence_head_reads_seven_interleaved_tokens():
    plain, network = classifier(), classifier(seq_head="mamba")
    vectors = [torch.arange(float(n)) + 1000 * n for n in (16, 32, 64)]
    maps = [v.view(1, -1, 1, 1, 1).expand(2, -1, 3, 2, 1) - 1050 * 16 for v in (vectors[0], *vectors)]
    c2, c3, c4 = (m[:, :, 0, 0, 0] for m in maps[1:])
    tokens = [c2, c3[:, 0::2], c3[:, 1::2], *(c4[:, k::4] for k in range(4))]
    with torch.no_grad():
        (read,) = inputs_of(network.sequence, lambda: network.pool(maps))
        assert_close(read, torch.stack(tokens, dim=1).clamp(min=0))
        assert (read == 0).any() and (read > 0).any()
        expected = torch.stack(tokens, dim=1) + network.sequence(read)
        assert_close(network.pool(maps), expected.reshape(2, 7 * 16))
        assert_close(plain.pool(maps), torch.cat([c2, c3, c4], dim=1))


@pytest.mark.parametrize(("stem_scan", "calls"), [("single", 1), ("css4", 4)])
def test_stem_scan_adds_to_the_stem(stem_scan, calls):
    network, x = classifier(stem_scan=stem_scan), image(1, 2, 16, 18, 20)
    with torch.no_grad():
        assert len(inputs_of(network.mic.mixer, lambda: network(x))) == calls
        stem = network.stem(x)
        assert_close(network.encode(x)[0], stem + network.mic(stem), atol=1e-5, rtol=1e-5)
    assert not any(isinstance(m, MambaMixer) for stage in (network.layer1, network.layer3) for m in stage.modules())


def test_classifier_takes_the_published_shape_of_adni_scaled_down():
    """112 x 136 x 112: 136 is no multiple of 16."""
    network, x = classifier(), image(2, 2, 28, 34, 28)
    with torch.no_grad():
        assert [tuple(m.shape[2:]) for m in network.encode(x)] == [(14, 17, 14), (7, 9, 7), (4, 5, 4), (2, 3, 2)]
        assert network(x).shape == (2, 3)


def follow_closely(network):
    """Let running statistics keep up with few steps."""
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm3d):
            module.momentum = 0.3


@pytest.mark.slow
def test_segmentation_learns_one_case():
    torch.manual_seed(0)
    grid = torch.stack(torch.meshgrid(*[torch.arange(32.0)] * 3, indexing="ij"))
    label = torch.zeros(1, 1, 32, 32, 32, dtype=torch.long)
    for value, centre in ((1, (9.0, 9.0, 11.0)), (2, (22.0, 21.0, 19.0))):
        label[0, 0][(grid - torch.tensor(centre).view(3, 1, 1, 1)).norm(dim=0) < 8] = value
    x = label + 0.3 * torch.randn(1, 1, 32, 32, 32)
    network, steps, lr = NNMambaSeg(1, 3, width=8), 45, 2e-2
    follow_closely(network)
    loss, optimizer = DiceCELoss(to_onehot_y=True, softmax=True), torch.optim.AdamW(network.parameters(), lr=lr)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = lr * min(1, 2 * (1 - step / steps))
        optimizer.zero_grad()
        loss(network(x), label).backward()
        optimizer.step()
    with torch.no_grad():
        predicted = network.eval()(x).argmax(1, keepdim=True)
    for value in (1, 2):
        ours, theirs = predicted == value, label == value
        assert float(2 * (ours & theirs).sum() / (ours.sum() + theirs.sum())) > 0.8


@pytest.mark.parametrize(
    ("seq_head", "stem_scan"), [("none", "single"), pytest.param("mamba", "css4", marks=pytest.mark.slow)]
)
def test_classifier_learns_one_batch(seq_head, stem_scan):
    torch.manual_seed(0)
    x, target = 0.3 * torch.randn(4, 1, 32, 32, 32), torch.tensor([[0.0], [1.0], [0.0], [1.0]])
    for sample, start in enumerate((4, 18, 6, 20)):  # the class is the side on which the blob lies
        x[sample, :, 12:20, 12:20, start : start + 8] += 1
    network = NNMambaClassifier(width=8, mlp_width=32, seq_head=seq_head, stem_scan=stem_scan)
    follow_closely(network)
    optimizer = torch.optim.AdamW(network.parameters(), lr=2e-3)
    for _ in range(30):
        optimizer.zero_grad()
        F.binary_cross_entropy_with_logits(network(x), target).backward()
        optimizer.step()
    with torch.no_grad():
        probability = network.eval()(x).sigmoid()
    assert (probability - target).abs().max() < 0.3


@pytest.mark.parametrize(
    "make",
    [
        lambda: NNMambaSeg(1, 3, deep_supervision=True),
        lambda: NNMambaClassifier(seq_head="mamba", stem_scan="css4"),
    ],
    ids=["segmentation", "classifier"],
)
def test_forward_and_backward_at_the_published_width(make):
    torch.manual_seed(0)
    network = make()
    out = network(image(1, 1, 32, 16, 48))
    sum(y.square().mean() for y in (out if isinstance(out, list) else [out])).backward()
    bad = [name for name, p in network.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    assert not bad


NETWORKS = {
    "segmentation": lambda: seg(deep_supervision=True),
    "classifier": lambda: classifier(),
    "classifier with sequences": lambda: classifier(seq_head="mamba", stem_scan="css4"),
}


@pytest.mark.parametrize("make", NETWORKS.values(), ids=NETWORKS.keys())
def test_samples_do_not_see_each_other_in_evaluation(make):
    network, x = make(), image(2, 2, 16, 32, 16)
    with torch.no_grad():
        assert_close(network(x)[1:], network(x[1:]), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("make", NETWORKS.values(), ids=NETWORKS.keys())
def test_bfloat16_is_close(make):
    network, x = make(), image(1, 2, 16, 32, 16)
    with torch.no_grad():
        full = network(x)
        with torch.autocast("cpu", torch.bfloat16):
            low = network(x)
    assert low.dtype == torch.bfloat16
    assert_close(low.float(), full, atol=0.05 * float(full.abs().max()), rtol=0)


@pytest.mark.parametrize("make", NETWORKS.values(), ids=NETWORKS.keys())
def test_scripted_network_equals_eager(make):
    eager = make()
    scripted = torch.jit.script(eager)
    assert list(scripted.state_dict()) == list(eager.state_dict())
    with torch.no_grad():
        for shape in ((1, 2, 16, 32, 16), (2, 2, 16, 16, 16)):
            assert_close(scripted(image(*shape)), eager(image(*shape)), atol=1e-5, rtol=1e-5)


def test_errors_name_value_and_remedy():
    network = NNMambaSeg(2, 3, width=8)
    with pytest.raises(ValueError, match=r"\(32, 48, 20\) must be divisible by 16.*try \(32, 48, 32\)"):
        network(torch.zeros(1, 2, 32, 48, 20))
    with pytest.raises(ValueError, match=r"input \(1, 1, 32, 32, 32\) must be \(B, 2, D, H, W\)"):
        network(torch.zeros(1, 1, 32, 32, 32))
    with pytest.raises(ValueError, match=r"single voxel at stride 16.*batch of 2"):
        network(torch.zeros(1, 2, 16, 16, 16))
    assert network.eval()(torch.zeros(1, 2, 16, 16, 16)).shape == (1, 3, 16, 16, 16)
    with pytest.raises(torch.jit.Error, match="multiples of 16"):
        torch.jit.script(network)(torch.zeros(1, 2, 16, 16, 24))
    with pytest.raises(ValueError, match=r"\(16, 12, 16\) must be at least 16 on every axis; pad it"):
        classifier()(torch.zeros(2, 2, 16, 12, 16))
    with pytest.raises(ValueError, match=r"must be \(B, 2, D, H, W\): in_channels=2"):
        classifier()(torch.zeros(2, 2, 16, 16))
    with pytest.raises(ValueError, match="out_channels 0 must be at least 1"):
        NNMambaSeg(1, 0)
    with pytest.raises(ValueError, match="width 0 must be at least 1"):
        NNMambaClassifier(width=0)
    with pytest.raises(ValueError, match="seq_head 'gru' must be 'none' or 'mamba'"):
        NNMambaClassifier(seq_head="gru")
    with pytest.raises(ValueError, match="stem_scan 'double' must be 'single' or 'css4'"):
        NNMambaClassifier(stem_scan="double")


def test_the_strided_block_alone_has_a_convolved_shortcut():
    assert isinstance(Residual(4, 4).shortcut, torch.nn.Identity)
    assert [type(m) for m in Residual(4, 8, stride=2).shortcut] == [torch.nn.Conv3d, torch.nn.BatchNorm3d]
