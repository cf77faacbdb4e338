"""The distortions of Models Genesis: what each does, how often, and that the image itself stays."""

import numpy as np
import pytest
import torch
from monai.data import CacheDataset, DataLoader
from monai.data.utils import set_rnd

from mambamim_nets.bundle.handlers.pretraining import mim_batch
from mambamim_nets.bundle.transforms.genesis import distortions

SHAPE = (32, 48, 32)


def image(seed=0):
    d, h, w = torch.meshgrid(*(torch.linspace(0, 1, n) for n in SHAPE), indexing="ij")
    smooth = ((d - 0.5) ** 2 + (h - 0.4) ** 2 + 0.3 * w).sqrt()
    return (smooth / smooth.max())[None] * 0.9 + 0.1 * torch.rand(
        1, *SHAPE, generator=torch.Generator().manual_seed(seed)
    )


def distorted(seed=0, **rates):
    transform = distortions(SHAPE, **{"shuffle_prob": 0, "intensity_prob": 0, "paint_prob": 0, **rates})
    return transform.set_random_state(seed)({"image": image()})["distorted"]


def test_the_target_is_the_undistorted_image_also_in_a_cache():
    clean = image()
    dataset = CacheDataset(
        [{"image": clean}], distortions(SHAPE, shuffle_prob=1), copy_cache=False, progress=False, num_workers=None
    )
    for seed in range(3):
        set_rnd(dataset, seed)
        (batch,) = DataLoader(dataset)
        given, target, arguments, keywords = mim_batch(batch, torch.device("cpu"), False)
        assert torch.equal(target[0], image()) and torch.equal(clean, image())
        assert arguments[0] is target and keywords == {} and not torch.equal(given, target)
    plain = mim_batch({"image": clean}, torch.device("cpu"), False)
    assert plain[0] is plain[1] and plain[2:] == ((), {})


def test_distortions_are_drawn_anew_and_repeat_with_their_seed():
    first, second, again = (distorted(seed, paint_prob=1, shuffle_prob=1, intensity_prob=1) for seed in (1, 2, 1))
    assert torch.equal(first, again) and not torch.equal(first, second)
    assert first.isfinite().all() and first.shape == (1, *SHAPE) and first.dtype == torch.float32
    assert torch.equal(distorted(), image())


def test_shuffling_moves_voxels_only_within_small_windows():
    found = distorted(shuffle_prob=1)
    assert not torch.equal(found, image())
    torch.testing.assert_close(found.flatten().sort().values, image().flatten().sort().values)
    assert (found - image()).abs().mean() < 0.05


def test_intensities_go_through_a_monotone_map():
    found, x = distorted(intensity_prob=1).flatten(), image().flatten()
    order = x.argsort()
    assert (found[order].diff() >= -1e-6).all() and (found - x).abs().max() > 0.01


@pytest.mark.parametrize(("outpaint", "low", "high"), [(1.0, 0.25, 0.95), (0.0, 0.003, 0.2)], ids=["out", "in"])
def test_painting_leaves_windows_or_paints_them(outpaint, low, high):
    for seed in range(5):
        share = (distorted(seed, paint_prob=1, outpaint=outpaint) != image()).float().mean()
        assert low < share < high


def test_rates_are_the_published_ones():
    transform = distortions(SHAPE).transforms
    assert (transform[1].prob, transform[2].prob) == (0.5, 0.9)
    np.testing.assert_allclose(transform[3].weights, [0.72, 0.18, 0.1])
