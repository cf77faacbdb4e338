"""Exclusive classes and regions: what the network predicts, and what is written."""

import pytest
import torch
from label_tasks import BRATS, BRATS_LABELS, TASKS, encoded, random_map
from monai.losses import DiceCELoss

from mambamim_nets.bundle.labels import PartialLabelLoss, RegionLoss, Targets


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
        ({"a": 1, "b": 3}, None, r"labels \[1, 3\] must be numbered 1 \.\. n"),
        ({"background": 0, "a": 1}, None, "must be numbered 1"),
        ({"a": 1, "b": 2, "c": 3}, {"x": [1, 2], "y": [2, 3]}, r"'x' \[1, 2\].*nested in or apart"),
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
    loss = RegionLoss(BRATS)
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


@pytest.mark.parametrize(
    ("name", "loss"), [("classes", DiceCELoss(to_onehot_y=True, softmax=True)), ("BraTS", RegionLoss(BRATS))]
)
def test_a_loss_is_small_where_the_network_is_right(name, loss):
    targets = TASKS[name]
    label_map = random_map(targets)
    logits = 40 * encoded(targets, label_map)[None] - 20
    assert loss(logits, label_map[None].float()) < 1e-3
    assert loss(-logits, label_map[None].float()) > 5


@pytest.mark.parametrize("weight", [None, torch.tensor([0.25, 1.0, 1.0, 1.0])], ids=["plain", "weighted"])
def test_partial_labels_with_every_label_are_dice_and_cross_entropy(weight):
    label = random_map(TASKS["classes"])[None].float()
    logits = torch.randn(1, 4, *label.shape[2:], generator=torch.Generator().manual_seed(0))
    plain = DiceCELoss(to_onehot_y=True, softmax=True, weight=weight)
    torch.testing.assert_close(PartialLabelLoss(weight=weight)(logits, label), plain(logits, label))


def test_voxels_without_a_label_take_no_part():
    label = random_map(TASKS["classes"])[None].float()
    label[..., ::2] = 255
    logits = torch.randn(1, 4, *label.shape[2:], generator=torch.Generator().manual_seed(0), requires_grad=True)
    loss = PartialLabelLoss()(logits, label)
    loss.backward()
    assert (logits.grad[..., ::2] == 0).all() and (logits.grad[..., 1::2] != 0).any()
    changed = logits.detach().clone()
    changed[..., ::2] += 5
    torch.testing.assert_close(PartialLabelLoss()(changed, label), loss.detach())
    assert torch.isfinite(PartialLabelLoss()(logits, torch.full_like(label, 255)))
