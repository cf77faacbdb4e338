"""Label maps: masks of structures, and predictions back on the grid of the input."""

import numpy as np
import pytest
import torch
from label_tasks import TASKS, encoded, random_map
from monai.data import MetaTensor
from monai.transforms import Compose, EnsureTyped, Orientationd, Spacingd

from mambamim_nets.bundle.labels import Targets
from mambamim_nets.bundle.transforms.labels import GIB, KeepPartsd, RestoreLabelsd, StructureMasksd


@pytest.mark.parametrize("name", ["classes", "BraTS"])
def test_masks_of_prediction_and_reference(name):
    targets = TASKS[name]
    found, true = random_map(targets, 1), random_map(targets, 2)
    logits = MetaTensor(8 * encoded(targets, found) - 4)
    out = StructureMasksd(targets)({"pred": logits, "label": MetaTensor(true.float()), "case": "a"})
    assert out["case"] == "a"
    for key, label_map in (("pred", found), ("label", true)):
        assert not isinstance(out[key], MetaTensor)
        assert torch.equal(out[key], targets.masks(label_map))
        assert torch.equal(out[f"{key}_map"].to(torch.uint8), label_map)


# --- back to the input's grid ---------------------------------------------------------------------

SHAPE = (26, 21, 13)


def oblique_lps():
    """Voxels of 0.9 x 1.2 x 2.1 mm, first axes to left and posterior, turned by 12 degrees about the third."""
    angle = np.deg2rad(12)
    turn = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    affine = np.eye(4)
    affine[:3, :3] = turn @ np.diag([-0.9, -1.2, 2.1])
    affine[:3, 3] = (12, 9, -7)
    return affine


def world(image):
    """RAS mm of the voxels of a MetaTensor (C, D, H, W)."""
    grid = np.stack(np.meshgrid(*map(np.arange, image.shape[1:]), indexing="ij"), -1)
    affine = np.asarray(image.affine)
    return grid @ affine[:3, :3].T + affine[:3, 3]


def inside(image):
    """Signed distance in mm: positive inside a ball, and in a half of it."""
    points = world(image)
    centre = np.asarray(oblique_lps()) @ [*((n - 1) / 2 for n in SHAPE), 1]
    ball = 8.5 - np.linalg.norm(points - centre[:3], axis=-1)
    half = np.minimum(ball, points[..., 0] - centre[0])
    return torch.from_numpy(np.stack([ball, half])).float()


def logits_of(targets, image):
    ball, half = inside(image)
    if targets.regions:
        return torch.stack([half, ball, torch.full_like(ball, -9)])
    return torch.stack([-ball, torch.minimum(ball, -half), half, torch.full_like(ball, -99)])


@pytest.fixture
def scan():
    data = torch.rand(1, *SHAPE, generator=torch.Generator().manual_seed(0))
    image = MetaTensor(data, affine=oblique_lps(), meta={"spatial_shape": np.array(SHAPE)})
    preprocessing = Compose(
        [
            Orientationd("image", axcodes="RAS", labels=None),
            Spacingd("image", pixdim=(1.5, 1.5, 1.5), mode="bilinear"),
            EnsureTyped("image"),
        ]
    )
    return image, preprocessing


def restore(scan, targets, max_gib):
    image, preprocessing = scan
    data = preprocessing({"image": image})
    assert data["image"].shape[1:] != SHAPE
    data["pred"] = MetaTensor(logits_of(targets, data["image"]), meta=data["image"].meta)
    return RestoreLabelsd("pred", targets, preprocessing, max_gib=max_gib)(data)["pred"]


@pytest.mark.parametrize("name", ["classes", "BraTS"])
def test_a_label_map_comes_back_on_the_inputs_grid(scan, name):
    targets = TASKS[name]
    ball, half = inside(scan[0])
    reference = torch.where(half > 0, 1, torch.where(ball > 0, 2, 0)).to(torch.uint8)
    if name == "classes":  # the ball without its half is 1, the half 2
        reference = torch.where(reference > 0, 3 - reference, 0)
    smooth, decided = (restore(scan, targets, gib) for gib in (2.0, 1e-9))
    for pred in (smooth, decided):
        assert pred.shape == (1, *SHAPE) and pred.dtype == torch.uint8
        np.testing.assert_allclose(np.asarray(pred.affine), oblique_lps(), atol=1e-6)
        assert set(pred.unique().tolist()) == {0, 1, 2}
    truth = reference > 0

    def agreement(pred):
        return (pred[0].as_tensor() == reference)[truth].float().mean()

    assert (smooth == decided).float().mean() > 0.95
    assert agreement(smooth) > 0.95 and agreement(decided) > 0.85
    assert agreement(smooth) >= agreement(decided), "interpolated probabilities are the finer of the two"


@pytest.mark.parametrize("name", ["classes", "BraTS"])
@pytest.mark.parametrize("decided_first", [False, True])
def test_the_size_on_the_inputs_grid_chooses_how(scan, name, decided_first):
    image, preprocessing = scan
    targets = TASKS[name]
    needed = np.prod(SHAPE) * targets.out_channels * 4 / GIB
    transform = RestoreLabelsd("pred", targets, preprocessing, max_gib=needed * (0.999 if decided_first else 1.001))
    used = []

    def spy(way, invert):
        def inverted(data):
            used.append((way, data["pred"].shape[0]))
            return invert(data)

        return inverted

    transform.smooth, transform.nearest = spy("smooth", transform.smooth), spy("nearest", transform.nearest)
    data = preprocessing({"image": image})
    data["pred"] = MetaTensor(logits_of(targets, data["image"]))
    transform(data)
    assert used == ([("nearest", 1)] if decided_first else [("smooth", targets.out_channels)])


ORGANS = Targets({"liver": 1, "spleen": 2})


@pytest.fixture
def parts() -> MetaTensor:
    """A label map of voxels of 1 x 2 x 5 mm, 0.01 ml: livers of 24 and 8 voxels, spleens of 3 and 1."""
    found = np.zeros((1, 6, 7, 8), np.uint8)
    found[0, :2, :2, :2], found[0, 4:, 4:, 4:], found[0, 3, 0, 0], found[0, 0, 6, :3] = 1, 1, 2, 2
    return MetaTensor(torch.from_numpy(found), affine=np.diag([-1.0, -2.0, 5.0, 1.0]))


@pytest.mark.parametrize(
    ("options", "left"),
    [
        ({}, {1: 32, 2: 4}),
        ({"keep_largest": True}, {1: 24, 2: 3}),
        ({"keep_largest": ["spleen"]}, {1: 32, 2: 3}),
        ({"keep_largest": "together"}, {1: 24, 2: 0}),
        ({"min_volume_ml": {"liver": 0.08}}, {1: 32, 2: 4}),
        ({"min_volume_ml": {"liver": 0.09}}, {1: 24, 2: 4}),
        ({"min_volume_ml": {"liver": 0.09, "spleen": 0.02}}, {1: 24, 2: 3}),
        ({"keep_largest": ["liver"], "min_volume_ml": {"liver": 0.25}}, {1: 0, 2: 4}),
    ],
    ids=str,
)
def test_parts_of_labels_are_kept_by_rank_and_by_volume(parts, options, left):
    before = parts.clone()
    found = KeepPartsd("pred", ORGANS, **options)({"pred": parts})["pred"]
    assert torch.equal(parts, before), "the label map that was given stays as it was"
    assert {value: int((found == value).sum()) for value in left} == left
    assert bool(((found == parts) | (found == 0)).all())
    assert found.dtype == parts.dtype and torch.equal(found.affine, parts.affine)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"keep_largest": ["kidney"]}, "keep_largest 'kidney' is no label of this task: it has liver, spleen"),
        ({"min_volume_ml": {"kidney": 1.0}}, "min_volume_ml 'kidney' is no label"),
        ({"min_volume_ml": {"liver": 0}}, "min_volume_ml of 'liver' is 0: must be above 0"),
    ],
    ids=["name", "name of a volume", "volume"],
)
def test_parts_of_what_is_no_label_are_refused(options, words):
    with pytest.raises(ValueError, match=words):
        KeepPartsd("pred", ORGANS, **options)


@pytest.mark.parametrize("options", [{"keep_largest": True}, {"min_volume_ml": {"a": 1.0}}], ids=str)
def test_parts_of_regions_are_refused(options):
    regions = Targets({"a": 1, "b": 2}, {"all": [1, 2], "core": [1]})
    with pytest.raises(ValueError, match=f"{next(iter(options))} must be .* for regions"):
        KeepPartsd("pred", regions, **options)
