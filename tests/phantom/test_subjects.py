"""Subjects of every kind: determinism, labels, tissues, grids."""

import nibabel as nib
import numpy as np
import pytest
from phantom_sizes import centres, millilitres

from mambamim_nets import phantom
from mambamim_nets.phantom import KINDS

SMALL = {kind: (56, 48, 48) for kind in KINDS} | {"hippocampus": (36, 50, 34)}


@pytest.mark.parametrize("kind", KINDS)
def test_same_arguments_give_the_same_subject_and_seeds_differ(kind):
    first, again, other = (phantom.make(kind, seed, SMALL[kind]) for seed in (3, 3, 4))
    for a, b in zip(first, again, strict=True):
        np.testing.assert_array_equal(a, b)
    assert (first.label != other.label).any()
    assert np.abs(first.image - other.image).mean() > 0.05 * np.abs(first.image).mean()


@pytest.mark.parametrize("kind", KINDS)
def test_arrays_are_float32_uint8_and_ras(kind):
    image, label, affine = phantom.make(kind, 0, SMALL[kind])
    channels = len(KINDS[kind].modalities)
    assert image.dtype == np.float32 and label.dtype == np.uint8 and affine.dtype == np.float64
    assert label.shape == SMALL[kind] and image.shape == SMALL[kind] + ((channels,) if channels > 1 else ())
    assert nib.aff2axcodes(affine) == ("R", "A", "S")
    assert np.isfinite(image).all() and set(np.unique(label)) <= {0, *KINDS[kind].labels}
    np.testing.assert_allclose(affine[:3, :3] @ ((np.array(label.shape) - 1) / 2) + affine[:3, 3], 0, atol=1e-9)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "abdomen"])
def test_every_label_is_in_every_subject(kind):
    for seed in range(3):
        label = phantom.tissues(kind, seed)[2]  # that of make, which paints it too
        assert set(np.unique(label)) == {0, *KINDS[kind].labels}


@pytest.mark.parametrize("kind", KINDS)
def test_tissues_are_what_make_paints_its_intensities_on(kind):
    spacing = 1.5 if kind == "hippocampus" else 5
    for seed in (3, 4):
        subject, (tissue, names, label, affine) = (
            build(kind, seed, spacing=spacing) for build in (phantom.make, phantom.tissues)
        )
        np.testing.assert_array_equal(label, subject.label)
        np.testing.assert_array_equal(affine, subject.affine)
        assert tissue.dtype == np.uint8 and sorted(names.values()) == list(range(len(names)))
        assert set(np.unique(tissue)) <= set(names.values())
        assert all(
            len(np.unique(label[tissue == value])) == 1 for value in np.unique(tissue)
        )  # a label is whole tissues
        image = np.moveaxis(subject.image, -1, 0) if subject.image.ndim == 4 else subject.image[None]
        for channel in image:  # tissues explain the image
            means = np.bincount(tissue.ravel(), channel.ravel()) / np.maximum(np.bincount(tissue.ravel()), 1)
            assert np.corrcoef(means[tissue].ravel(), channel.ravel())[0, 1] > 0.85
    with pytest.raises(ValueError, match="choose one of abdomen"):
        phantom.tissues("knee", 0)


def test_shape_and_spacing_sample_the_same_anatomy():
    coarse = phantom.make("spleen", 0, spacing=5)
    assert coarse.label.shape == (63, 54, 54)
    fine = phantom.make("spleen", 0, shape=(100, 90, 80))
    np.testing.assert_allclose(millilitres(coarse, 1), millilitres(fine, 1), rtol=0.05)
    np.testing.assert_allclose(centres(coarse, "spleen")["spleen"], centres(fine, "spleen")["spleen"], atol=1.5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        pytest.param({"kind": "knee"}, "choose one of abdomen", id="kind"),
        pytest.param({"kind": "abdomen", "shape": (8, 96, 96)}, "32 to 512", id="shape-small"),
        pytest.param({"kind": "brain", "shape": (64, 64)}, "three axes", id="shape-2d"),
        pytest.param({"kind": "abdomen", "spacing": (3, 0, 3)}, "spacing", id="spacing-zero"),
        pytest.param({"kind": "abdomen", "spacing": 0.3}, "512", id="too-large"),
        pytest.param({"kind": "abdomen", "seed": -1}, "seed -1", id="seed"),
    ],
)
def test_make_refuses_absurd_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        phantom.make(**{"seed": 0} | arguments)
