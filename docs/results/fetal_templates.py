"""Make a landmark data set of fetal brain templates with real appearance, for bundles/fetal_landmarks.

    python docs/results/fetal_templates.py TEMPLATES TARGET [--variants 10] [--heads 50] [--seed 0]

TEMPLATES holds the atlas of fetuses with spina bifida (Fidon et al., Open Research Europe 2021, CC0): folders with
`srr.nii.gz` and `parcellation.nii.gz`, whose class 3 is the cerebellum. TARGET gets

- `images` and `dataset.json`: variants of the templates but four, and synthetic heads of the phantom, divided into
  training and validation (the variants of two templates and a fifth of the heads), for `--fold official`;
- `test`: a data set of the four templates left out, as they are.

**Points** come from the cerebellum's largest part: the TCD ends at its right and left extremes. Its section at the
middle plane stands for the vermis, of which HDV is the height and ADV the depth. An extreme is the mean of all voxels
within a voxel of the outermost one.

**Variants.** Cerebella of these fetuses are small and low, as is part of the disease. A variant is the whole head with
its cerebellum larger, by a smooth map that is linear in an ellipsoid around it and the identity beyond 2.2 times its
size, then turned by up to 30 degrees and scaled. Points follow the maps exactly.
"""

import json
from collections.abc import Callable
from pathlib import Path

import fire
import nibabel as nib
import numpy as np
from scipy import ndimage
from scipy.spatial.transform import Rotation

from mambamim_nets import phantom
from mambamim_nets.phantom.fetal import POINTS

CEREBELLUM, MIDDLE_MM, REACH, SPACING = 3, 1.5, 2.2, 1.25
TEST, VALIDATION = ("GA22", "GA26", "GA30", "GA33"), ("GA24", "GA32")
GROWTH, SIZE = (0.95, 1.5), (0.88, 1.15)
HEADS = 10_000  # seeds of synthetic heads, far from those of `phantom.write`


def read(folder: Path) -> tuple[nib.Nifti1Image, dict[str, np.ndarray], np.ndarray]:
    """Return a template in RAS, its six points in mm, and middle and half axes of its cerebellum in mm (2, 3)."""
    image, labels = (nib.as_closest_canonical(nib.load(folder / f"{name}.nii.gz")) for name in ("srr", "parcellation"))
    parts, count = ndimage.label(np.rint(np.asarray(labels.dataobj)) == CEREBELLUM)
    voxels = np.argwhere(parts == 1 + np.argmax(ndimage.sum_labels(parts > 0, parts, range(1, count + 1))))
    mm = nib.affines.apply_affine(labels.affine, voxels)
    edge = float(labels.header.get_zooms()[0])
    low, high = mm.min(0), mm.max(0)

    def extreme(of: np.ndarray, axis: int, sign: int) -> np.ndarray:
        along = sign * of[:, axis]
        end = of[along >= along.max() - edge].mean(0)
        end[axis] = sign * (along.max() + edge / 2)
        return end

    middle = mm[np.abs(mm[:, 0] - (low[0] + high[0]) / 2) <= MIDDLE_MM]
    ends = ((mm, 0, 1), (mm, 0, -1), (middle, 2, 1), (middle, 2, -1), (middle, 1, 1), (middle, 1, -1))
    points = dict(zip(POINTS, (extreme(*end) for end in ends), strict=True))
    return image, points, np.stack([(low + high) / 2, (high - low) / 2 + 2])


def larger(cerebellum: np.ndarray, growth: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """Return the map from points in mm (..., 3) of a head with a larger cerebellum to those of the head itself."""
    centre, half = cerebellum

    def source(points: np.ndarray) -> np.ndarray:
        distance = np.linalg.norm((points - centre) / (half * growth), axis=-1, keepdims=True)
        outside = np.clip((distance - 1) / (REACH - 1), 0, 1)
        return centre + (points - centre) * (1 / growth + (1 - 1 / growth) * outside)

    return source


def inverse(source: Callable[[np.ndarray], np.ndarray], point: np.ndarray) -> np.ndarray:
    """Return where a point of the head lies after the cerebellum has grown."""
    found = point.copy()
    for _ in range(200):
        found += 0.5 * (point - source(found))
    return found


def vary(image: nib.Nifti1Image, points: dict, cerebellum: np.ndarray, rng: np.random.Generator) -> tuple:
    """Return a variant and its points."""
    source = larger(cerebellum, rng.uniform(*GROWTH) * rng.uniform(0.94, 1.06, 3))
    axis = rng.normal(size=3)
    turn = Rotation.from_rotvec(axis / np.linalg.norm(axis) * np.deg2rad(rng.uniform(0, 30))).as_matrix()
    turn = turn * rng.uniform(*SIZE)
    values = np.asarray(image.dataobj, np.float32)
    whole = nib.affines.apply_affine(image.affine, np.argwhere(values > 0))
    centre = (whole.min(0) + whole.max(0)) / 2
    reach = np.abs((whole - centre) @ turn.T).max(0) + 12
    shape = np.ceil(2 * reach / SPACING).astype(int)
    affine = nib.affines.from_matvec(np.eye(3) * SPACING, -reach)
    grid = nib.affines.apply_affine(affine, np.moveaxis(np.indices(shape), 0, -1))
    places = source(grid @ np.linalg.inv(turn).T + centre)
    indices = nib.affines.apply_affine(np.linalg.inv(image.affine), places)
    drawn = ndimage.map_coordinates(values, np.moveaxis(indices, -1, 0), order=1)
    moved = {name: turn @ (inverse(source, point) - centre) for name, point in points.items()}
    return nib.Nifti1Image(drawn, affine), moved


def write(folder: Path, case: str, image: nib.Nifti1Image, points: dict[str, np.ndarray]) -> dict[str, str]:
    """Write an image; return its rows of `landmarks.csv` and its entry of `dataset.json`."""
    nib.save(image, folder / "images" / f"{case}.nii.gz")
    with (folder / "landmarks.csv").open("a", encoding="utf-8") as file:
        file.writelines(f"{case},{name},{x:.3f},{y:.3f},{z:.3f},RAS\n" for name, (x, y, z) in points.items())
    return {"image": f"images/{case}.nii.gz", "subject": case.split("_")[0]}


def main(templates: str, target: str, variants: int = 10, heads: int = 50, seed: int = 0) -> None:
    """Write both data sets; a TARGET that is there is refused."""
    folder = Path(target)
    for place in (folder, folder / "test"):
        (place / "images").mkdir(parents=True)
        (place / "landmarks.csv").write_text("case,name,x,y,z,frame\n", encoding="utf-8")
    lists: dict[str, list[dict[str, str]]] = {"training": [], "validation": [], "test": []}
    for number, found in enumerate(sorted(Path(templates).glob("*_GA*"))):
        age = found.name.split("_")[3]
        template, points, cerebellum = read(found)
        length = float(np.linalg.norm(points["TCD_start"] - points["TCD_end"]))
        print(f"{found.name}: TCD {length:.1f} mm")
        if age in TEST:
            lists["test"].append(write(folder / "test", found.name.replace("_", "-"), template, points))
            continue
        part = "validation" if age in VALIDATION else "training"
        for variant in range(variants):
            made = vary(template, points, cerebellum, np.random.default_rng([seed, number, variant]))
            lists[part].append(write(folder, f"{found.name.replace('_', '-')}_{variant:02d}", *made))
    for number in range(heads):
        head = phantom.make("fetal", HEADS + number)
        part = "validation" if number % 5 == 0 else "training"
        made = nib.Nifti1Image(head.image, head.affine), phantom.landmarks("fetal", HEADS + number)
        lists[part].append(write(folder, f"synthetic-{number:03d}", *made))
    for place, names in ((folder, ("training", "validation")), (folder / "test", ("test",))):
        content = {"training" if name == "test" else name: lists[name] for name in names}
        (place / "dataset.json").write_text(json.dumps(content, indent=1), encoding="utf-8")


if __name__ == "__main__":
    fire.Fire(main)
