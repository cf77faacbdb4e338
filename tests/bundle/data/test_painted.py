"""The data set of painted crops: its sources and their shares, seeds, what it refuses."""

import json

import nibabel as nib
import numpy as np
import pytest
from monai.data.utils import set_rnd
from monai.transforms import Compose, RandFlipd, RandGaussianNoised
from painted_maps import BTCV, SPACING, write_organs

from mambamim_nets.bundle.data import painted
from mambamim_nets.bundle.data.painted import PaintedCrops
from mambamim_nets.phantom import KINDS
from mambamim_nets.phantom.painting import IGNORED


@pytest.fixture(scope="module")
def organs(tmp_path_factory):
    return write_organs(tmp_path_factory.mktemp("organs"))


@pytest.fixture
def crops(organs):
    def make(sources=None, samples=4, transform=None, **options):
        settings = {
            "labels": {name: value for value, name in BTCV.items()},
            "roi_size": [16, 12, 14],
            "spacing": [SPACING] * 3,
            **options,
        }
        sources = sources or [{"path": str(organs), "names": "btcv"}]
        return PaintedCrops(sources, samples=samples, transform=transform or (lambda data: data), **settings)

    return make


def test_crops_have_a_channel_axis_and_every_epoch_paints_new_ones(crops):
    dataset = crops()
    assert len(dataset) == 4
    first, second = ([dataset[i]["label"] for i in range(4)] for _ in range(2))
    assert first[0].shape == (1, 16, 12, 14)
    assert not any(np.array_equal(a, b) for a, b in zip(first, second, strict=True))


def test_crops_and_their_augmentation_are_reproducible(crops):
    """As each epoch is seeded, so that a resumed run draws what an uninterrupted one does."""
    runs = []
    for _ in range(2):
        chance = Compose([RandFlipd(["image", "label"], prob=0.5), RandGaussianNoised("image", prob=0.5)])
        dataset = crops(transform=chance)
        dataset[0]
        set_rnd(dataset, 7)
        runs.append([np.asarray(dataset[i][key]) for i in range(4) for key in ("image", "label")])
    for one, other in zip(*runs, strict=True):
        assert np.array_equal(one, other)


def test_weights_are_shares_of_the_crops(crops, organs, monkeypatch):
    sources = [
        {"path": str(organs), "names": "btcv", "weight": 3.0},
        {"path": str(organs), "names": "amos"},
    ]
    dataset = crops(sources, roi_size=[2, 2, 2]).set_random_state(0)
    assert dataset.weights == pytest.approx([0.75, 0.25])
    drawn = []
    blank = np.zeros((2, 2, 2), np.float32)
    monkeypatch.setattr(painted, "paint", lambda anatomy, *_: drawn.append(anatomy) or (blank, blank))
    for _ in range(400):
        dataset[0]
    share = sum(anatomy is dataset.anatomies[0] for anatomy in drawn) / len(drawn)
    assert share == pytest.approx(0.75, abs=0.07)


@pytest.mark.parametrize(
    ("kind", "spacing"), [("abdomen", 8.0), ("amos", 8.0), ("hepatic_vessel", 8.0), ("ctorg", 9.0), ("brain", 4.0)]
)
def test_phantoms_are_anatomies_too(crops, kind, spacing):
    labels = KINDS[kind].labels
    named = {name: value for value, name in labels.items()}
    settings = {"labels": named, "spacing": [spacing] * 3, "roi_size": [24, 24, 24]}
    dataset = crops([{"phantom": kind, "subjects": 2}], **settings)
    assert len(dataset.anatomies) == 2 and dataset.weights == [0.5, 0.5]
    for anatomy in dataset.anatomies:
        drawn = {name for value, name in anatomy.names.items() if (anatomy.ids == value).any()}
        assert set(labels.values()) - drawn <= {"left adrenal gland", "right adrenal gland"}, "vanish on coarse grids"
    dataset.set_random_state(0)
    found = {value for i in range(6) for value in np.unique(dataset[i % 4]["label"]).tolist()}
    assert found <= {0, *labels} and len(found) > 1 + len(labels) // 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"spacing": [1.5, 1.5, 3.0]}, r"spacing \[1\.5, 1\.5, 3\.0\] must be the same on every axis"),
        ({"sources": [{"phantom": "nose"}]}, r"source \{'phantom': 'nose'\} must have .* or 'phantom', one of"),
        ({"sources": [{"folder": "x"}]}, r"source \{'folder': 'x'\} must have 'path' and 'names'"),
        ({"sources": [{"path": "x.nii", "names": "btvc"}]}, r"'names', one of \['amos', 'btcv', 'totalsegmentator'\]"),
        ({"sources": [{"path": "x.nii"}]}, r"source \{'path': 'x\.nii'\} must have 'path' and 'names'"),
    ],
    ids=["spacing", "phantom", "neither", "unknown names", "no names"],
)
def test_refused(crops, options, message):
    with pytest.raises(ValueError, match=message):
        crops(**options)


# --- organs and folders ---------------------------------------------------------------------------


def test_organs_are_placed_into_bodies_and_folders_name_themselves(crops, organs, tmp_path):
    folder = tmp_path / "livers"
    folder.mkdir()
    (folder / "manifest.json").write_text(json.dumps({"label_names": {"1": "liver"}}))
    nib.save(nib.Nifti1Image(np.pad(np.ones((9, 8, 7), np.uint8), 2), np.diag([6.0, 6, 6, 1])), folder / "a.nii.gz")
    body = tmp_path / "body"
    body.mkdir()
    (body / "manifest.json").write_text(json.dumps({"label_names": {"6": "liver", "7": "stomach"}}))
    nib.save(nib.load(organs), body / "label.nii.gz")
    dataset = crops([{"organs": str(folder)}, {"path": str(body)}], cache_dir=tmp_path / "cache")
    assert len(dataset.anatomies) == 1 and [len(found) for found in dataset.organs.values()] == [1]
    assert list((tmp_path / "cache").glob("*.npz"))
    values = {value for i in range(8) for value in np.unique(dataset[i % 4]["label"]).tolist()}
    assert values <= {0, 6, 7, IGNORED} and {6, IGNORED} <= values


def test_organs_alone_are_no_body(crops, tmp_path):
    (tmp_path / "manifest.json").write_text(json.dumps({"label_names": {"1": "liver"}}))
    nib.save(nib.Nifti1Image(np.ones((4, 4, 4), np.uint8), np.eye(4)), tmp_path / "a.nii.gz")
    with pytest.raises(ValueError, match="must hold a body"):
        crops([{"organs": str(tmp_path)}])
