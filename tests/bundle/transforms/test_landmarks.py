"""Heat maps and back, on real landmarks in every orientation, and through everything that moves an image."""

import json
from itertools import pairwise, permutations, product

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import (
    Affine,
    CenterSpatialCrop,
    Flip,
    Orientation,
    RandAffine,
    Resize,
    Rotate90,
    Spacing,
    SpatialPad,
)
from torch.testing import assert_close

from mambamim_nets.bundle.transforms.landmarks import (
    DecodeLandmarksd,
    HeatmapLoss,
    LandmarkTargetsd,
    decode_heatmaps,
    heatmaps,
    radial_errors,
    warmup_quadratic,
)

NAMES = ["TCD_start", "TCD_end", "HDV_start", "HDV_end"]
OBLIQUE = np.array([[1.4, 0.1, 0.2, -30], [-0.1, 1.5, 0.1, -35], [-0.2, -0.1, 1.6, -40], [0, 0, 0, 1]])
ORIENTATIONS = [
    "".join(axes[i] for axes, i in zip(order, sides, strict=True))
    for order in permutations(("RL", "AP", "SI"))
    for sides in product((0, 1), repeat=3)
]


def to_world_and_back(points: np.ndarray, image: MetaTensor, sigma: float = 2.0) -> np.ndarray:
    """Return by how many voxels points (N, 3) in RAS mm move: world, voxels, heat maps, decoded, world."""
    names = [str(number) for number in range(len(points))]
    item = LandmarkTargetsd("landmarks", names)({"image": image, "landmarks": points})
    maps = heatmaps(item["label"], image.shape[1:], sigma, 50.0)
    found = DecodeLandmarksd(sigma)(item | {"pred": maps})
    edges = np.linalg.norm(np.asarray(image.affine)[:3, :3], axis=0)
    return found["error"].numpy() / edges.min()


def reoriented(affine: np.ndarray, shape: tuple[int, ...], codes: str) -> MetaTensor:
    header = nib.Nifti1Image(np.zeros(shape, np.uint8), affine)
    wanted = nib.orientations.axcodes2ornt(codes)
    moved = header.as_reoriented(nib.orientations.ornt_transform(nib.io_orientation(affine), wanted))
    return MetaTensor(torch.zeros(1, *moved.shape), affine=torch.as_tensor(moved.affine))


# --- real landmarks -------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["ct", "mri"])
def test_points_of_a_spine_survive_in_all_48_orientations(real_data, kind):
    spine = real_data("tptbox_spine")
    scan = nib.load(spine / kind / "image.nii.gz")
    assert "".join(nib.aff2axcodes(scan.affine)) == "PIR"
    listed = json.loads((spine / kind / "landmarks.json").read_text())["landmarks"]
    world, voxels = (np.array([point[key] for point in listed]) for key in ("ras_mm", "ijk"))
    image = MetaTensor(torch.zeros(1, *scan.shape), affine=torch.as_tensor(scan.affine))
    names = [str(number) for number in range(len(world))]
    item = LandmarkTargetsd("landmarks", names)({"image": image, "landmarks": world})
    np.testing.assert_allclose(item["label"], voxels, atol=0.01)
    assert len(ORIENTATIONS) == 48
    for codes in ORIENTATIONS:
        assert to_world_and_back(world[:4], reoriented(scan.affine, scan.shape, codes)).max() < 0.1, codes
    assert to_world_and_back(world, image).max() < 0.1


def test_points_of_a_lung_are_lps_and_survive(real_data, tmp_path):
    from mambamim_nets.bundle.data.landmarks import landmark_findings
    from mambamim_nets.bundle.io.landmarks import read_table

    lung = real_data("elastix_lung")
    path = lung / "baseline_small.nii.gz"
    scan = nib.load(path)
    lps = json.loads((lung / "landmarks.json").read_text())["landmarks_inside_image_lps"]
    names = [f"p{number}" for number in range(len(lps))]
    rows = [f"{name},{','.join(map(str, place))}" for name, place in zip(names, lps, strict=True)]
    for frame in ("LPS", "RAS"):
        table = tmp_path / f"{frame}.csv"
        table.write_text("\n".join([f"# frame: {frame}", "name,x,y,z", *rows]))
        points = np.array(list(read_table(table)[""].values()))
        item = {"image": str(path), "landmarks": points, "case": "lung", "landmark_file": str(table)}
        problems = landmark_findings(item, names).problems
        if frame == "LPS":
            assert problems == []
            image = MetaTensor(torch.zeros(1, *scan.shape), affine=torch.as_tensor(scan.affine))
            assert to_world_and_back(points, image).max() < 0.1
        else:
            assert len(problems) == len(names), "each of them would lie elsewhere"
            assert all("must lie inside its image" in line and "means RAS or LPS" in line for line in problems)


# --- transforms move points with the image --------------------------------------------------------


MOVES = {
    **{codes: Orientation(codes, labels=None) for codes in ("LPS", "PIR", "SRA")},
    **{f"flip {axis}": Flip(axis) for axis in range(3)},
    "quarter turn": Rotate90(),
    "spacing": Spacing((1.2, 1.2, 1.2)),
    "coarser": Spacing((3.0, 3.0, 3.0)),
    "resize": Resize((60, 66, 72)),
    "pad": SpatialPad((64, 70, 64)),
    "crop": CenterSpatialCrop((31, 30, 33)),
    "rotate": Affine(rotate_params=(0.2, -0.3, 0.1)),
    "random affine": RandAffine(prob=1, rotate_range=(0.3,) * 3, scale_range=(0.1,) * 3).set_random_state(0),
}


@pytest.mark.parametrize("move", MOVES.values(), ids=MOVES)
def test_a_transform_moves_points_with_the_image(move):
    """The image is a blob at the point: where the affine says the point is now, there the blob must be."""
    voxel = np.array([[21.3, 24.6, 27.2]])
    world = nib.affines.apply_affine(OBLIQUE, voxel)
    image = MetaTensor(heatmaps(torch.tensor(voxel), (44, 50, 56), 3.0), affine=torch.as_tensor(OBLIQUE))
    moved = move(image)
    moved = moved[0] if isinstance(moved, tuple) else moved
    label = LandmarkTargetsd("landmarks", ["a"])({"image": moved, "landmarks": world})["label"]
    centre = (moved.as_tensor()[0] ** 4).double()
    grid = torch.stack(torch.meshgrid(*(torch.arange(n) for n in centre.shape), indexing="ij"), -1).double()
    blob = (grid * centre[..., None]).sum((0, 1, 2)) / centre.sum()
    np.testing.assert_allclose(label[0], blob, atol=0.1)


def test_a_mirrored_head_has_its_sides_swapped_and_a_turned_one_has_not():
    world = np.array([(30.0, 0, 0), (-30, 2, 1), (0, 5, 9), (0, 4, -9)])
    image = MetaTensor(torch.zeros(1, 40, 40, 40), affine=torch.diag(torch.tensor((2.0, 2, 2, 1))) + 0.0)
    image.affine[:3, 3] = -40
    place = LandmarkTargetsd("landmarks", NAMES, [NAMES[:2]])
    plain = place({"image": image, "landmarks": world})["label"]
    np.testing.assert_allclose(plain, (world + 40) / 2, atol=1e-5)
    for axis in range(3):
        mirrored = plain.clone()
        mirrored[:, axis] = 39 - mirrored[:, axis]
        label = place({"image": Flip(axis)(image), "landmarks": world})["label"]
        assert_close(label, mirrored[[1, 0, 2, 3]])
    twice = place({"image": Flip((0, 1))(image), "landmarks": world})["label"]
    turned = plain.clone()
    turned[:, :2] = 39 - turned[:, :2]
    assert_close(twice, turned)
    with pytest.raises(ValueError, match=r"swap \['TCD_start', 'x'\] must be two of TCD_start"):
        LandmarkTargetsd("landmarks", NAMES, [["TCD_start", "x"]])


# --- decoding -------------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [0.7, 1.0, 1.5])
def test_decoding_finds_points_between_voxels_of_blobs_of_any_width_at_the_border_too(width):
    points = torch.rand(60, 3, generator=torch.Generator().manual_seed(0), dtype=torch.double) * 23
    points[:6] = torch.tensor([(0.0, 0, 0), (23, 23, 23), (0, 11.5, 23), (0.4, 0.4, 0.4), (22.6, 5, 5), (5, 0.5, 9)])
    found, height = decode_heatmaps(heatmaps(points, (24, 24, 24), 2.0 * width, 50.0), sigma=2.0)
    assert np.abs(found - points.numpy()).max() < 1e-3
    assert ((height > 40 if width > 0.9 else height > 25) & (height <= 50)).all()


def test_decoding_of_noisy_maps_and_of_maps_without_a_point():
    generator = torch.Generator().manual_seed(0)
    points = 6 + 20 * torch.rand(40, 3, generator=generator)
    maps = heatmaps(points, (32, 32, 32), 2.0, 50.0)
    found, _ = decode_heatmaps(maps + torch.randn(maps.shape, generator=generator), 2.0)
    rounded = np.abs(points.numpy() - np.rint(points.numpy())).mean()
    assert np.abs(found - points.numpy()).mean() < 0.05 < 0.2 < rounded, "nearer than the highest voxel is"
    flat, height = decode_heatmaps(torch.stack([torch.zeros(8, 8, 8), -torch.ones(8, 8, 8)]), 2.0)
    assert np.isfinite(flat).all() and (height <= 0).all()


# --- loss and schedule ----------------------------------------------------------------------------


def test_loss_is_the_squared_error_and_leaves_missing_points_out():
    points = torch.rand(2, 3, 3) * 10
    pred = torch.randn(2, 3, 12, 10, 11, requires_grad=True)
    loss, target = HeatmapLoss(2.0, 50.0), heatmaps(points, (12, 10, 11), 2.0, 50.0)
    assert_close(loss(pred, points), torch.nn.functional.mse_loss(pred, target))
    assert float(target.amax()) > 45 and loss(target, points) == 0
    points[0, 1] = torch.nan
    kept = torch.ones(2, 3, dtype=torch.bool)
    kept[0, 1] = False
    value = loss(pred, points)
    assert_close(value, ((pred - target) ** 2)[kept].mean())
    value.backward()
    assert pred.grad[0, 1].abs().sum() == 0 and pred.grad.isfinite().all()
    far = torch.full((1, 1, 3), 500.0)
    assert loss(torch.zeros(1, 1, 8, 8, 8), far) == 0, "a point outside the crop asks for an empty map"
    with pytest.raises(ValueError, match="one map for each of points"):
        loss(pred, points[:, :2])


def test_errors_in_mm_are_those_of_the_affine():
    image = MetaTensor(torch.zeros(1, 20, 20, 20), affine=torch.as_tensor(OBLIQUE))
    truth = nib.affines.apply_affine(OBLIQUE, [(5.0, 6, 7), (10, 11, 12)])
    off = heatmaps(torch.tensor([(5.0, 6, 9), (10, 11, 12)]), (20, 20, 20), 2.0, 50.0)
    out = DecodeLandmarksd(2.0)({"image": image, "pred": off, "landmarks": torch.as_tensor(truth)})
    expected = 2 * np.linalg.norm(OBLIQUE[:3, 2])
    np.testing.assert_allclose(out["error"], (expected, 0), atol=1e-3)
    np.testing.assert_allclose(out["confidence"], 1, atol=1e-6)
    missing = {"error": torch.tensor((1.0, torch.nan))}
    assert radial_errors([out, missing]) == pytest.approx((expected / 2 + 1) / 2, abs=1e-3)


def test_learning_rate_rises_falls_and_never_rises_again():
    factor = warmup_quadratic(1, 10, 5)
    values = [factor(step) for step in range(70)]
    assert values[:5] == [0.2, 0.4, 0.6, 0.8, 1.0] and values[5] == 1.0
    assert values[27] == pytest.approx((1 - 22 / 45) ** 2)
    assert all(a >= b for a, b in pairwise(values[4:])) and values[50:] == [0] * 20
    assert warmup_quadratic(0, 1, 1)(0) == 1
    with pytest.raises(ValueError, match="must be fewer than the 5 epochs"):
        warmup_quadratic(5, 5, 1)
