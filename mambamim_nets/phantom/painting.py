"""Paint images of random contrast on label maps: domain randomisation, to train where there are labels but no scans.

SYNTHETIC: the shapes may come from patients' label maps, heavily deformed and with organs exchanged, but no voxel of an
image does, except where a body comes with the scan that was labelled: of that most crops are the deformed scan itself,
with the HU of its organs shifted to those of a phase of contrast agent.

A label map is warped by a random affine map and a random smooth displacement, its structures get the HU of a phase of
contrast agent (or, in the random style, any grey value), hollow organs are filled with fluid, food or oral contrast and
gas, what no label covers becomes fat, muscle and loops of soft tissue; table, arms, thickness of slices and noise
follow. After Billot et al. 2023 (SynthSeg), with priors in HU.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.random import Generator
from scipy.ndimage import binary_erosion, distance_transform_edt, gaussian_filter, map_coordinates

from mambamim_nets.phantom.anatomies import AMBIGUOUS, SHELL, SHELLS, Anatomy
from mambamim_nets.phantom.appearance import ENHANCED, HOLLOW, bowel_filling, draw_values, scanned, table_and_arms
from mambamim_nets.phantom.kinds import label_of
from mambamim_nets.phantom.organs import Organ, replace_organ

__all__ = ["IGNORED", "paint", "target_values"]

IGNORED = 255
"""Label value of voxels that may belong to a structure which the map cannot name; the loss leaves them out."""
LESIONS = ("tumour", "cyst")
EXCHANGED = 0.6  # share of the crops in which an organ is replaced by another patient's
SCANNED = 0.75  # share of the crops of a body with a scan that show the scan
AS_SCANNED = 0.25  # share of these that keep the HU of the scan


def target_values(anatomy: Anatomy, labels: Mapping[int, str]) -> np.ndarray:
    """Return the label value of a task for each of the 256 ids of an anatomy, uint8.

    A lesion counts as itself where the task labels it, else as its organ. What a map cannot tell apart is `IGNORED`,
    and so is what it leaves unlabelled within the body if the task asks for an organ outside its vocabulary.
    """
    wanted = {name: value for value, name in labels.items()}
    known = {_counts_as(name, wanted) for name in anatomy.vocabulary or wanted}
    lacking = any(name not in known and name.split(" ")[-1] not in LESIONS for name in wanted)
    table = np.zeros(256, np.uint8)
    for number, name in anatomy.names.items():
        unclear = not wanted.keys().isdisjoint(AMBIGUOUS.get(name, ())) or (lacking and name == "between")
        table[number] = wanted.get(_counts_as(name, wanted), IGNORED if unclear else 0)
    return table


def _counts_as(name: str, labels: Mapping[str, int]) -> str:
    """Return the label under which a structure counts; that of a lesion is its own, or that of its organ."""
    organ, _, lesion = name.rpartition(" ")
    if organ and lesion in LESIONS:
        own = {"pancreas": f"pancreatic {lesion}", "right kidney": lesion, "left kidney": lesion}.get(organ, name)
        if own in labels:
            return own
        name = organ
    return label_of(name, labels)


def paint(
    anatomy: Anatomy,
    labels: Mapping[int, str],
    shape: Sequence[int],
    seed: int | Sequence[int],
    random_style: float = 0.3,
    organs: Mapping[str, Sequence[Organ]] | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Paint one crop.

    Args:
        anatomy: what to deform and paint.
        labels: target label value -> name.
        shape: (D, H, W) of the crop, in voxels of the anatomy's spacing.
        seed: the same seed, the same crop.
        random_style: probability of grey values without regard to HU.
        organs: other patients' organs by name, placed at times in the place of the body's own.

    Returns:
        Image float32 in HU, label uint8 with `IGNORED` where the map does not say what the task asks; both (D, H, W).
    """
    rng = np.random.default_rng(seed)
    from_scan = anatomy.scan is not None and rng.random() < SCANNED
    for _, choices in sorted((organs or {}).items() if not from_scan else ()):
        if rng.random() < EXCHANGED:
            anatomy = replace_organ(anatomy, choices[int(rng.integers(len(choices)))], rng)
    place, rigid = _warp(anatomy, labels, shape, rng)
    ids = map_coordinates(anatomy.ids, place, order=0, mode="constant", cval=0, prefilter=False)
    label = target_values(anatomy, labels)[ids]
    if from_scan:
        image = _deformed_scan(anatomy, ids, place, rng)
    else:
        image = _painted(anatomy, ids, label, rigid, random_style, rng)
    image = scanned(image, anatomy.spacing, rng)
    if rng.random() < 0.3:
        _keep_few_slices(image, label, rng)
    return image, label


def _painted(
    anatomy: Anatomy, ids: np.ndarray, label: np.ndarray, rigid: np.ndarray, random_style: float, rng: Generator
) -> np.ndarray:
    """Return the HU (D, H, W) of a crop; a small field of view is cut out of the label too, in place."""
    shape = ids.shape
    masks, thickness = _structures(anatomy, ids, rng)
    waves = [_waves(rng, shape, cells) for cells in (6, 12)]
    tissues = _tissues(masks, waves, anatomy.spacing, rng)
    names = sorted({name for name, *_ in tissues})
    values = draw_values(rng, names, free=rng.random() < random_style)
    image, texture = np.full(shape, -1000.0, np.float32), np.zeros(shape, np.float32)
    for name, where, *own in tissues:
        image[where], texture[where] = own or values[name]
    image += texture * _waves(rng, shape, 16)
    _surround(image, label, rigid, anatomy, thickness, rng)
    return image


def _deformed_scan(anatomy: Anatomy, ids: np.ndarray, place: np.ndarray, rng: Generator) -> np.ndarray:
    """Return the HU (D, H, W) of a crop of a body's scan, its organs at times in another phase of contrast agent."""
    assert anatomy.scan is not None
    image = map_coordinates(anatomy.scan, place, np.float32, order=1, mode="constant", cval=-1000, prefilter=False)
    if rng.random() < AS_SCANNED:
        return image
    present = [int(number) for number in np.unique(ids)]
    names = [anatomy.names[number] for number in present]
    values = draw_values(rng, sorted({name for name in names if name in ENHANCED}), free=False)
    shift = np.zeros(256, np.float32)
    for number, name in zip(present, names, strict=True):
        if name in values:
            shift[number] = values[name][0] - float(np.median(anatomy.scan[anatomy.ids == number]))
    return image + gaussian_filter(shift[ids], 0.6)


def _keep_few_slices(image: np.ndarray, label: np.ndarray, rng: Generator) -> None:
    """Leave a few slices around the middle, as of a short scan, and air in all others, in place."""
    count = image.shape[2]
    kept = int(rng.integers(4, max(5, count * 2 // 3)))
    start = int(np.clip(rng.normal(0.5, 0.17) * count - kept / 2, 0, count - kept))
    for slices in (slice(0, start), slice(start + kept, count)):
        image[..., slices], label[..., slices] = -1000, 0


def _structures(anatomy: Anatomy, ids: np.ndarray, rng: Generator) -> tuple[dict[str, np.ndarray], float]:
    """Return the mask of each structure of a crop, and how thick what lies around the labelled body is, in mm."""
    wall = int(rng.integers(0, 4))  # shells of muscle, then of fat, then skin
    thickness = wall + int(rng.integers(0, SHELLS - wall - 1))
    masks: dict[str, np.ndarray] = {}
    for number in np.unique(ids):
        name = anatomy.names[int(number)]
        if name.startswith("shell"):
            shell = int(name.split()[1])
            name = "wall" if shell < wall else "fat" if shell < thickness else "skin" if shell == thickness else "air"
        where = ids == number
        masks[name] = masks[name] | where if name in masks else where
    return masks, (thickness + 1) * SHELL


def _tissues(
    masks: Mapping[str, np.ndarray], waves: Sequence[np.ndarray], spacing: float, rng: Generator
) -> list[tuple]:
    """Return what to paint, in order: (tissue, mask), or (name, mask, HU, texture) of what has values of its own."""
    tubes = (np.abs(waves[1]) < 0.3) & (np.abs(waves[0]) < 0.3)
    found: list[tuple] = []
    for name, where in masks.items():
        if name == "between":  # of a map without bowel: fat, crossed by loops of soft tissue, some with gas
            soft = where & (np.abs(waves[0]) < rng.uniform(0.2, 0.7))
            gas = soft & (waves[1] > rng.uniform(1.2, 3))
            found += [("fat", where), ("muscle" if rng.random() < 0.4 else "bowel", soft), ("gas", gas)]
        elif name == "visceral fat":
            found += [("fat", where), ("great vessel", where & tubes), ("soft tissue", where & (waves[1] > 2))]
        elif name == "flank":  # muscle on ribs and belly, fat outside
            around = [masks[outer] for outer in ("flank", "wall", "fat", "skin", "air") if outer in masks]
            inside = ~np.logical_or.reduce(around)
            near = distance_transform_edt(~inside, sampling=spacing) < rng.uniform(5, 16)
            found += [("fat", where), ("muscle", where & near)]
        elif name == "wall":  # muscle with something like ribs, where no ribs are labelled
            found += [("muscle", where)] + [("bone", where & (waves[1] > 1))] * ("flank" not in masks)
        elif name in HOLLOW:
            inner = binary_erosion(where, border_value=1)
            filling = bowel_filling(name, where, inner, waves[0], rng)
            found += [(name, where), *(("content", mask, value, texture) for mask, value, texture in filling)]
        elif name == "bone":
            found += [(name, where), ("marrow", binary_erosion(where, border_value=1))]
        elif name.endswith("kidney"):
            found += [("cortex", where), (name, binary_erosion(where, border_value=1))]
        elif name == "liver":
            found += [(name, where)] + [("hepatic vessel", where & tubes)] * (rng.random() < 0.7)
        elif name in ("lung", "lungs"):
            found += [(name, where)] + [("great vessel", where & tubes & (waves[0] > 0.1))] * (rng.random() < 0.7)
        elif name == "heart":
            chambers = binary_erosion(where, iterations=2, border_value=1) & (waves[0] > -0.7)
            found += [(name, where)] + [("aorta", chambers)] * (rng.random() < 0.5)
        else:
            found.append((name, where))
    return [item for item in found if item[0] != "air" and item[1].any()]


def _surround(
    image: np.ndarray,
    label: np.ndarray,
    place: np.ndarray,
    anatomy: Anatomy,
    thickness: float,
    rng: Generator,
) -> None:
    """Put the patient on a table and at times into a field of view that is too small.

    Args:
        image: (D, H, W) HU, changed in place.
        label: (D, H, W), changed in place.
        place: (3, D, H, W) of `_warp`, where each voxel lies in the anatomy, voxels.
        anatomy: that was painted.
        thickness: of what lies around its labelled body, mm.
        rng: draws whether there is a table, arms and a small field of view.
    """
    outside = [number for number, name in anatomy.names.items() if name == "air" or name.startswith("shell")]
    inside = ~np.isin(np.arange(256), outside)[anatomy.ids]
    ends = [np.flatnonzero(inside.any((1, 2))), np.flatnonzero(inside.any((0, 2)))]
    body = [(end[0] * anatomy.spacing - thickness, end[-1] * anatomy.spacing + thickness) for end in ends]
    place = place[:2] * anatomy.spacing
    if rng.random() < 0.8:
        table_and_arms(image, image == -1000, place, body, rng)
    if rng.random() < 0.2:
        middle = [(low + high) / 2 + rng.normal(0, 15) for low, high in body]
        beyond = np.hypot(place[0] - middle[0], place[1] - middle[1]) > rng.uniform(130, 260)
        image[beyond], label[beyond] = -1024, 0


def _warp(
    anatomy: Anatomy, labels: Mapping[int, str], shape: Sequence[int], rng: Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Deform a crop around a random organ, or around a random place in the body.

    Returns:
        The place in the anatomy of each voxel, and the one before the smooth displacement; both voxels (3, D, H, W).
    """
    present = np.flatnonzero(np.isin(target_values(anatomy, labels), list(labels)))
    target = int(rng.choice(present)) if rng.random() < 0.88 else -1
    where = np.flatnonzero(anatomy.ids == target if target >= 0 else anatomy.ids > 0)
    if not len(where):
        where = np.flatnonzero(anatomy.ids > 0)
    centre = np.array(np.unravel_index(rng.choice(where), anatomy.ids.shape), float)
    angles, scales = rng.uniform(-0.25, 0.25, 3), rng.uniform(0.82, 1.22, 3)
    matrix = np.diag(scales * rng.uniform(0.87, 1.15)) + rng.uniform(-0.08, 0.08, (3, 3))
    for axis, angle in enumerate(angles):
        i, j = (other for other in range(3) if other != axis)
        turn = np.eye(3)
        turn[i, i] = turn[j, j] = np.cos(angle)
        turn[i, j], turn[j, i] = -np.sin(angle), np.sin(angle)
        matrix = matrix @ turn
    offset = [np.arange(n) - rng.uniform(0.25, 0.75) * n for n in shape]
    grid = np.stack(np.meshgrid(*offset, indexing="ij"))
    rigid = np.tensordot(matrix, grid, 1) + centre[:, None, None, None]
    place = rigid.copy()
    for cells, most in ((3, 14.0), (7, 4.0)):
        strength = rng.uniform(0, most) / anatomy.spacing
        place += strength * np.stack([_waves(rng, shape, cells) for _ in range(3)])
    return place, rigid


def _waves(rng: Generator, shape: Sequence[int], cells: int) -> np.ndarray:
    """Return a smooth random field of about unit variance, float32: linear between knots, then smoothed."""
    field = rng.standard_normal((cells + 1,) * 3).astype(np.float32)
    for n in shape:  # the axis done goes last, so three turns restore the order
        position = np.linspace(0, cells, n)
        t = np.clip(np.abs(position[:, None] - np.arange(cells + 1)), 0, 1)
        weight = (1 - t) ** 2 * (1 + 2 * t)  # smooth step
        weight /= np.sqrt((weight**2).sum(1, keepdims=True))
        field = np.tensordot(field, weight.astype(np.float32), axes=(0, 1))
    return field
