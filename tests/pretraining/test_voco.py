"""VoCo: labels and losses by hand, the teacher, and crops where they are said to be."""

import math

import pytest
import torch
import torch.nn.functional as F
from monai.inferers import SimpleInferer

from mambamim_nets import HyMamba, HyMambaSeg, MambaUNETR, VisionMamba, VoCo, load_encoder
from mambamim_nets.bundle.inference.inferers import AutocastInferer
from mambamim_nets.pretraining.voco import overlap, position_loss, separation_loss

pytestmark = pytest.mark.usefixtures("all_narrow")

SHAPE = (32, 48, 16)
GRID = (2, 3, 1)


def model(encoder=HyMamba, **options):
    torch.manual_seed(0)
    return VoCo(encoder(1, size="tiny"), grid=GRID, **options)


def batch(samples=2):
    return torch.rand(samples, 1, *SHAPE, generator=torch.Generator().manual_seed(0))


def test_overlap_labels_by_hand():
    starts = torch.tensor([[[0, 0, 0], [16, 32, 0], [8, 4, 0]]])
    label = overlap(starts, (16, 16, 16), GRID)
    assert label.shape == (1, 3, 6)
    expected = [[1, 0, 0, 0, 0, 0], [0, 0, 0, 0, 0, 1], [3 / 8, 1 / 8, 0, 3 / 8, 1 / 8, 0]]
    torch.testing.assert_close(label[0], torch.tensor(expected))


def test_overlap_labels_equal_counted_voxels():
    grid, crop = (4, 4, 1), (8, 6, 4)
    number = torch.arange(16).view(4, 4, 1)
    for axis, side in enumerate(crop):
        number = number.repeat_interleave(side, axis)
    starts = torch.stack(
        [torch.randint(3 * crop[0] + 1, (9,)), torch.randint(3 * crop[1] + 1, (9,)), torch.zeros(9)], 1
    )
    for start, label in zip(starts.long(), overlap(starts.long(), crop, grid), strict=True):
        d, h, w = start.tolist()
        inside = number[d : d + crop[0], h : h + crop[1], w : w + crop[2]]
        torch.testing.assert_close(label, inside.flatten().bincount(minlength=16) / math.prod(crop))


def test_losses_by_hand():
    similarity, label = torch.tensor([[[0.5, 0.3], [0.0, 0.2]]]), torch.tensor([[[0.75, 0.25], [1.0, 0.0]]])
    near = -(0.75 * math.log(0.75) + 0.25 * math.log(0.95) + 1.0 * math.log(1e-6)) / 2
    torch.testing.assert_close(position_loss(similarity, label), torch.tensor(near + 0.2**2))
    assert position_loss(label, label) == 0
    bases = torch.tensor([[[1.0, 0.0], [2.0, 0.0], [0.0, 3.0], [-1.0, 0.0]]])
    torch.testing.assert_close(separation_loss(bases), torch.tensor(2 / 12))


@pytest.mark.parametrize("encoder", [HyMamba, VisionMamba])
def test_the_loss_is_what_student_and_teacher_say_of_the_crops_at_the_starts(encoder):
    network, x = model(encoder).eval(), batch()
    with torch.no_grad():
        for parameter in network.teacher.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    starts = torch.tensor([[[0, 0, 0], [5, 31, 0]], [[16, 7, 0], [3, 3, 0]]])

    def embed(encoder, project, crop):
        maps = encoder(crop)
        return project(maps[-1].flatten(2).mean(2))[0]

    corners = [[16 * i, 16 * j, 0] for i in range(2) for j in range(3)]
    similarity, apart = [], []
    with torch.no_grad():
        for volume, places in zip(x, starts, strict=True):
            crops = [volume[None, :, d : d + 16, h : h + 16, w : w + 16] for d, h, w in [*corners, *places.tolist()]]
            student = torch.stack([embed(network.encoder, network.project, crop) for crop in crops])
            teacher = torch.stack([embed(*network.teacher, crop) for crop in crops[:6]])
            similarity.append(torch.stack([F.cosine_similarity(q[None], teacher) for q in student[6:]]).relu())
            apart.append(separation_loss(student[None, :6]))
        out = network(x, starts)
    label = overlap(starts, (16, 16, 16), GRID)
    expected = position_loss(torch.stack(similarity), label) + sum(apart) / 2
    assert out.reconstruction is None and out.visible is None
    torch.testing.assert_close(out.loss, expected, atol=1e-4, rtol=1e-4)


def test_the_teacher_is_a_moving_average_without_gradient():
    network, x = model(decay=0.9), batch()
    start = {key: value.clone() for key, value in network.encoder.state_dict().items()}
    assert all(torch.equal(start[key], value) for key, value in network.teacher[0].state_dict().items())
    with torch.no_grad():
        for parameter in network.encoder.parameters():
            parameter.add_(1)
    network(x).loss.backward()
    assert all(p.grad is None and not p.requires_grad for p in network.teacher.parameters())
    for key, value in network.teacher[0].state_dict().items():
        torch.testing.assert_close(value, start[key] + 0.1)
    held = {key: value.clone() for key, value in network.teacher.state_dict().items()}
    network.eval()(x)
    assert all(torch.equal(held[key], value) for key, value in network.teacher.state_dict().items())


@pytest.mark.parametrize("encoder", [HyMamba, VisionMamba])
def test_the_loss_falls_and_reaches_every_parameter_of_the_student(encoder):
    network = model(encoder, crops=6)
    d, h, _ = torch.meshgrid(*(torch.linspace(0, 1, n) for n in SHAPE), indexing="ij")
    x = (d + (7 * h).sin())[None, None] * torch.rand(1, 1, *SHAPE)
    starts = network.draw_starts(x)
    optimizer = torch.optim.AdamW([p for p in network.parameters() if p.requires_grad], lr=2e-3)
    losses = []
    for _ in range(8):
        optimizer.zero_grad()
        losses.append(network(x, starts).loss)
        losses[-1].backward()
        optimizer.step()
    assert losses[-1] < 0.9 * losses[0]
    without = [name for name, p in network.named_parameters() if p.requires_grad and p.grad is None]
    assert all(name.startswith("encoder.skips.") for name in without)


def test_random_crops_lie_inside_and_anywhere():
    network = model(crops=200)
    starts = network.draw_starts(batch())
    assert starts.shape == (2, 200, 3) and not torch.equal(starts[0], starts[1])
    assert starts.amin((0, 1)).tolist() == [0, 0, 0] and starts.amax((0, 1)).tolist() == [16, 32, 0]


@pytest.mark.parametrize("encoder", [HyMamba, VisionMamba])
def test_the_encoder_and_not_the_teacher_starts_the_segmentation_network(encoder, tmp_path):
    network = model(encoder)
    with torch.no_grad():
        network.encoder.stem.bias.add_(1)
    target = HyMambaSeg(1, 3, size="tiny") if encoder is HyMamba else MambaUNETR(1, 3, size="tiny")
    torch.save(network.state_dict(), tmp_path / "whole.pt")
    load_encoder(target, tmp_path / "whole.pt")
    for key, value in target.encoder.state_dict().items():
        assert torch.equal(value, network.encoder.state_dict()[key])


def test_bad_values_are_refused_with_the_remedy():
    encoder = VisionMamba(1, size="tiny")
    for options, message in (
        ({"grid": (1, 1, 1)}, r"grid \(1, 1, 1\) must be three numbers, at least one above 1"),
        ({"crops": 0}, "crops 0 must be at least 1"),
        ({"decay": 1.0}, r"decay 1.0 must lie in \[0, 1\)"),
    ):
        with pytest.raises(ValueError, match=message):
            VoCo(encoder, **options)
    with pytest.raises(ValueError, match=r"\(16, 16, 96\) has no two base crops .* multiples of \(64, 64, 16\)"):
        VoCo(encoder)(torch.rand(1, 1, 16, 16, 96))


@pytest.mark.parametrize(
    ("side", "base", "crop"),
    [
        ((256, 256, 64), [4, 4, 1], [64, 64, 64]),
        ((96, 96, 96), [3, 3, 1], [32, 32, 96]),
        ((32, 48, 32), [2, 3, 1], [16, 16, 32]),
        ((16, 80, 16), [1, 1, 1], None),
    ],
)
def test_the_grid_is_coarser_where_the_volume_is_smaller(side, base, crop):
    network, x = VoCo(VisionMamba(1, size="tiny")), torch.empty(1, 1, *side, device="meta")
    if crop is None:
        with pytest.raises(ValueError, match="no two base crops"):
            network.fit(x)
    else:
        assert network.fit(x) == base and network.crop_shape(x) == crop


def test_small_crops_are_trained_in_float32_on_a_cpu():
    """bfloat16 gradients of maps two voxels deep are wrong there (torch 2.13)."""
    seen = []
    for shape, dtype in ((SHAPE, torch.float32), ((64, 48, 16), torch.bfloat16)):
        network = model()
        network.project[0].register_forward_hook(lambda _m, _i, out: seen.append(out.dtype))
        AutocastInferer(SimpleInferer(), amp=True)(torch.rand(1, 1, *shape), network)
        assert seen.pop() == dtype
