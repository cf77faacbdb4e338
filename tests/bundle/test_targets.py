"""Exclusive classes and regions: what the network predicts, what is written, what is measured."""

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import Compose, EnsureTyped, Orientationd, Spacingd

from mambamim_nets.bundle.targets import GIB, RegionLoss, RestoreLabelsd, StructureMasksd, Targets, keep_largest

BTCV_LIKE = {1: "spleen", 2: "right kidney", 3: "left kidney"}
BRATS = {"TC": [1, 4], "WT": [1, 2, 4], "ET": [4]}
BRATS_LABELS = {1: "necrotic core", 2: "oedema", 4: "enhancing tumour"}
TASKS = {
    "classes": Targets(BTCV_LIKE),
    "BraTS": Targets(BRATS_LABELS, BRATS),
    "BraTS 2023": Targets(
        {1: "necrotic core", 2: "oedema", 3: "enhancing"}, {"TC": [1, 3], "WT": [1, 2, 3], "ET": [3]}
    ),
    "KiTS": Targets({1: "kidney", 2: "tumour", 3: "cyst"}, {"all": [1, 2, 3], "masses": [2, 3], "tumour": [2]}),
    "apart": Targets({5: "left", 9: "right"}, {"left": [5], "right": [9]}),
}


def random_map(targets, seed=0, shape=(5, 7, 6)):
    values = np.array([0, *targets.labels])
    return torch.from_numpy(np.random.default_rng(seed).choice(values, (1, *shape)).astype(np.uint8))


def encoded(targets, label_map):
    """The probabilities of a network that is right: one per region, or one per class with the background first."""
    masks = targets.masks(label_map).float()
    return masks if targets.regions else torch.cat([(label_map == 0).float(), masks])


def test_names_and_channels():
    classes, brats = TASKS["classes"], TASKS["BraTS"]
    assert classes.channels == ["background", "spleen", "right kidney", "left kidney"] and classes.out_channels == 4
    assert classes.structures == {"spleen": (1,), "right kidney": (2,), "left kidney": (3,)}
    assert brats.channels == ["TC", "WT", "ET"] and brats.out_channels == 3
    assert brats.structures == {"TC": (1, 4), "WT": (1, 2, 4), "ET": (4,)}


@pytest.mark.parametrize(
    ("name", "painted"),
    [
        ("BraTS", [(1, 2), (0, 1), (2, 4)]),
        ("BraTS 2023", [(1, 2), (0, 1), (2, 3)]),
        ("KiTS", [(0, 1), (1, 3), (2, 2)]),
        ("apart", [(0, 5), (1, 9)]),
    ],
)
def test_what_a_region_paints(name, painted):
    assert TASKS[name].painted == painted


@pytest.mark.parametrize("name", TASKS)
def test_a_label_map_survives_encoding_and_decoding(name):
    targets = TASKS[name]
    for seed in range(5):
        label_map = random_map(targets, seed)
        masks = targets.masks(label_map)
        assert masks.dtype == torch.uint8 and masks.shape == (len(targets.structures), *label_map.shape[1:])
        for mask, values in zip(masks, targets.structures.values(), strict=True):
            assert torch.equal(mask.bool(), sum(label_map[0] == value for value in values).bool())
        decoded = targets.label_map(encoded(targets, label_map))
        assert decoded.dtype == torch.uint8 and torch.equal(decoded, label_map)


@pytest.mark.parametrize("name", TASKS)
def test_probabilities_decide_as_logits_do(name):
    targets = TASKS[name]
    label_map = random_map(targets)
    logits = 8 * encoded(targets, label_map) - 4
    probabilities = targets.probabilities(logits)
    assert ((probabilities >= 0) & (probabilities <= 1)).all()
    if not targets.regions:
        torch.testing.assert_close(probabilities.sum(0), torch.ones(label_map.shape[1:]))
        assert torch.equal(targets.label_map(logits), label_map)
    assert torch.equal(targets.label_map(probabilities), label_map)


def test_a_region_that_is_found_outside_the_larger_one_is_written_all_the_same():
    probabilities = torch.tensor([0.9, 0.1, 0.2]).view(3, 1, 1, 1)  # tumour core without whole tumour
    assert TASKS["BraTS"].label_map(probabilities).item() == 1


@pytest.mark.parametrize(
    ("labels", "regions", "message"),
    [
        ({1: "a", 3: "b"}, None, r"labels \[1, 3\] must be numbered 1 \.\. n"),
        ({0: "background", 1: "a"}, None, "must be numbered 1"),
        ({1: "a", 2: "b", 3: "c"}, {"x": [1, 2], "y": [2, 3]}, r"'x' \[1, 2\].*nested in or apart"),
        (BRATS_LABELS, {"TC": [1, 3]}, r"must consist of labels \[1, 2, 4\]"),
        (BRATS_LABELS, {"WT": [1, 2, 4], "TC": [1, 4], "oedema": [2], "ET": [4]}, r"'WT'.* it has \[\]"),
        (BRATS_LABELS, {"WT": [1, 2, 4], "ET": [4]}, r"'WT'.* it has \[1, 2\]"),
        (BRATS_LABELS, {"nothing": []}, r"'nothing' \[\].* it has \[\]"),
    ],
    ids=["gap", "background", "crossing", "unknown", "no own label", "two own labels", "empty"],
)
def test_refused(labels, regions, message):
    with pytest.raises(ValueError, match=message):
        Targets(labels, regions)


def test_region_loss_is_cross_entropy_plus_dice():
    label = torch.tensor([0, 1, 2, 4, 4, 0, 2, 1]).view(2, 1, 1, 2, 2).float()
    logits = torch.randn(2, 3, 1, 2, 2, generator=torch.Generator().manual_seed(0), requires_grad=True)
    loss = TASKS["BraTS"].loss()
    assert isinstance(loss, RegionLoss)
    terms = []
    for scan in range(2):
        for channel, values in enumerate(BRATS.values()):
            p = torch.sigmoid(logits[scan, channel].detach())
            y = sum(label[scan, 0] == value for value in values).float()
            entropy = -(y * p.log() + (1 - y) * (1 - p).log()).mean()
            dice = 1 - (2 * (p * y).sum() + 1e-5) / (p.sum() + y.sum() + 1e-5)
            terms.append(entropy + dice)
    value = loss(logits, label)
    torch.testing.assert_close(value.detach(), torch.stack(terms).mean(), rtol=1e-5, atol=1e-6)
    value.backward()
    assert torch.isfinite(logits.grad).all() and (logits.grad != 0).all()


@pytest.mark.parametrize("name", ["classes", "BraTS"])
def test_a_loss_is_small_where_the_network_is_right(name):
    targets = TASKS[name]
    label_map = random_map(targets)
    logits = 40 * encoded(targets, label_map)[None] - 20
    assert targets.loss()(logits, label_map[None].float()) < 1e-3
    assert targets.loss()(-logits, label_map[None].float()) > 5


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


def test_the_largest_part_of_each_label_stays():
    found = np.zeros((6, 7, 8), np.uint8)
    found[:2, :2, :2], found[4:, 4:, 4:], found[3, 0, 0], found[0, 6, :3] = 1, 1, 2, 2
    expected = found.copy()
    expected[:2, :2, :2], expected[3, 0, 0] = 0, 0
    keep_largest(found)
    assert np.array_equal(found, expected)
    with pytest.raises(ValueError, match="keep_largest must be false for regions"):
        RestoreLabelsd("pred", Targets({1: "a", 2: "b"}, {"all": [1, 2], "core": [1]}), Compose([]), keep_largest=True)
