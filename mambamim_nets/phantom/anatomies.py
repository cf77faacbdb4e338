"""Label maps of bodies: read, named in one vocabulary, resampled, and surrounded by what a map of organs leaves out.

Glossary
    anatomy     ids (D, H, W) on a RAS grid and the name of each id; names are those of the phantom's tissues
    vocabulary  what a map can name at all: a structure outside it may be anywhere in "between"
    shells      layers of 4 mm around what is labelled: muscle, fat and skin, then air, as thick as a sample draws
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import nibabel as nib
import numpy as np
from scipy.ndimage import distance_transform_edt, gaussian_filter1d, map_coordinates
from scipy.spatial import Delaunay, QhullError

from mambamim_nets.phantom.kinds import KINDS

__all__ = [
    "NAMES",
    "SHELLS",
    "TOTALSEGMENTATOR",
    "Anatomy",
    "file_names",
    "read_anatomy",
    "tissue_of",
    "with_surroundings",
]

TOTALSEGMENTATOR = {
    1: "spleen", 2: "right kidney", 3: "left kidney", 4: "gallbladder", 5: "liver", 6: "stomach", 7: "pancreas",
    8: "right adrenal gland", 9: "left adrenal gland", 15: "oesophagus", 16: "trachea", 18: "bowel", 19: "duodenum",
    20: "colon", 21: "urinary bladder", 22: "prostate or uterus", 51: "heart", 52: "aorta", 53: "heart",
    63: "inferior vena cava", 64: "portal and splenic veins", 79: "cord", 90: "cord", 117: "cartilage",
} | dict.fromkeys(range(10, 15), "lung") | dict.fromkeys(range(54, 63), "great vessel") \
  | dict.fromkeys(range(65, 69), "great vessel") | dict.fromkeys(range(80, 90), "muscle") \
  | dict.fromkeys([*range(25, 51), *range(69, 79), *range(91, 117)], "bone")  # fmt: skip
"""TotalSegmentator v2, task total: id to name; names of the AMOS and BTCV organs are those of the phantom."""
NAMES = {"btcv": KINDS["abdomen"].labels, "amos": KINDS["amos"].labels, "totalsegmentator": TOTALSEGMENTATOR}

# the first pattern found in a structure's own name decides; unknown structures are soft tissue of no label
TISSUES = {
    "spleen": "spleen$", "right kidney": "kidney_right|right_kidney", "left kidney": "kidney_left|left_kidney",
    "gallbladder": "gallbladder", "liver": "liver", "stomach or duodenum": "stomach_and_duodenum",
    "stomach": "stomach", "pancreas": "pancreas", "right adrenal gland": "adrenal_gland_right|right_adrenal",
    "left adrenal gland": "adrenal_gland_left|left_adrenal", "oesophagus": "esophagus", "trachea": "trachea",
    "duodenum": "duodenum", "colon": "colon", "bowel": "small_bowel", "urinary bladder": "urinary_bladder",
    "prostate or uterus": "prostate", "lung": "^lung_", "disc": "disc$", "cartilage": "cartilage",
    "bone": "^rib|vertebra|sacrum|^hip|femur|humerus|scapula|clavicula|skull|sternum|pelvis|lumbar|thoracic|coccyx",
    "muscle": "muscle|autochthon|gluteus|iliopsoas", "heart": "heart|atrial", "aorta": "aorta",
    "inferior vena cava": "inferior_vena_cava", "portal and splenic veins": "portal|splenic_vein",
    "great vessel": "artery|vein|vena|trunk", "cord": "spinal_cord|^brain$",
}  # fmt: skip
AMBIGUOUS = {"stomach or duodenum": ("stomach", "duodenum")}
"""One structure of a map to the labels that it may be."""
PARIETAL = ("bone", "muscle", "disc", "cartilage", "cord")
SHELL, SHELLS = 4.0, 10  # mm, number


class Anatomy(NamedTuple):
    """A body.

    Attributes:
        ids: uint8 (D, H, W) on a RAS grid.
        names: id to name; id 0 is named "air".
        spacing: edge of the voxels in mm.
        vocabulary: what the map can name; None: everything that a task may ask for.
        scan: HU, int16 (D, H, W), of the patient whose map it is; None: there is none.
    """

    ids: np.ndarray
    names: dict[int, str]
    spacing: float
    vocabulary: frozenset[str] | None = None
    scan: np.ndarray | None = None

    def where(self, name: str) -> np.ndarray:
        """Return the mask (D, H, W) of a structure."""
        return np.isin(self.ids, [number for number, found in self.names.items() if found == name])


def tissue_of(structure: str) -> str:
    """Return our name of a structure as TotalSegmentator or the SPL atlas calls it; "soft tissue" of any other."""
    structure = structure.lower()
    return next((tissue for tissue, pattern in TISSUES.items() if re.search(pattern, structure)), "soft tissue")


def file_names(folder: Path) -> dict[int, str]:
    """Return the value -> structure table that lies in a folder of label maps.

    Args:
        folder: with "label_names" in its manifest.json, or a colour table (*.ctbl) of 3D Slicer.

    Raises:
        ValueError: if it has neither.
    """
    manifest = folder / "manifest.json"
    table = json.loads(manifest.read_text(encoding="utf-8")).get("label_names") if manifest.exists() else None
    if table:
        return {int(value): str(name) for value, name in table.items()}
    for path in sorted(folder.glob("*.ctbl")):
        rows = [line.split() for line in path.read_text(encoding="utf-8").splitlines()]
        return {int(row[0]): row[1] for row in rows if len(row) > 1 and row[0].isdigit()}
    raise ValueError(f"{folder} must have label_names in a manifest.json, or a colour table *.ctbl, to name its labels")


def read_anatomy(
    path: str | os.PathLike[str],
    names: Mapping[int, str] | None,
    spacing: float,
    scan: str | os.PathLike[str] | None = None,
) -> Anatomy:
    """Read a label map, resample it to isotropic voxels, and surround it by tissue.

    Args:
        path: NIfTI label map, or a folder that holds one and the names of its labels, see `file_names`.
        names: label value -> name; values that it lacks count as unlabelled. None: the names in the folder.
        spacing: edge of the voxels in mm.
        scan: the CT that was labelled, NIfTI in HU on the grid of the map; None: there is none.

    Raises:
        ValueError: if a folder does not hold exactly one label map, or the scan lies on another grid.
    """
    path = Path(path)
    if path.is_dir():
        names = names or {value: tissue_of(name) for value, name in file_names(path).items()}
        found = sorted(path.glob("*.nii*"))
        if len(found) != 1:
            raise ValueError(f"{path} must hold one label map of a body, has {len(found)} NIfTI files")
        path = found[0]
    if names is None:
        raise ValueError(f"{path} needs the names of its labels, one of {sorted(NAMES)}")
    values, known = resampled(path, spacing), sorted(set(names.values()))
    table = np.zeros(int(max(values.max(), *names)) + 1, np.uint8)
    for value, name in names.items():
        table[value] = 1 + known.index(name)
    covered = {label for name in known for label in AMBIGUOUS.get(name, ())}
    anatomy = Anatomy(
        table[values],
        {0: "air", **dict(enumerate(known, start=1))},
        spacing,
        frozenset({*known, *covered}),
        None if scan is None else _resampled_scan(Path(scan), path, values.shape),
    )
    return with_surroundings(anatomy)


def resampled(path: Path, spacing: float) -> np.ndarray:
    """Return the values (D, H, W) of a label map on an isotropic RAS grid: of each centre the voxel that holds it."""
    image = nib.as_closest_canonical(nib.load(path))
    values = np.asanyarray(image.dataobj)
    shape = [round(n * edge / spacing) for n, edge in zip(values.shape, image.header.get_zooms(), strict=False)]
    index = [((np.arange(n) + 0.5) * m / n).astype(int) for n, m in zip(shape, values.shape, strict=True)]
    return np.rint(values[np.ix_(*index)]).astype(np.int64)


def _resampled_scan(path: Path, label_map: Path, shape: Sequence[int]) -> np.ndarray:
    """Return the HU of a CT on the isotropic grid of its label map, int16 (D, H, W)."""
    scan, labels = (nib.as_closest_canonical(nib.load(file)) for file in (path, label_map))
    if scan.shape != labels.shape or not np.allclose(scan.affine, labels.affine, atol=1e-3):
        raise ValueError(f"{path} must lie on the grid of {label_map}, the label map of it; resample one of them first")
    values = np.asarray(scan.dataobj, np.float32)
    centres = [(np.arange(n) + 0.5) * m / n - 0.5 for n, m in zip(shape, values.shape, strict=True)]
    grid = np.stack(np.meshgrid(*centres, indexing="ij"))
    return np.rint(map_coordinates(values, grid, order=1, mode="nearest")).clip(-1024, 3071).astype(np.int16)


def with_surroundings(anatomy: Anatomy) -> Anatomy:
    """Add what a map of organs leaves out: a body around and between them, shells of fat, a spine where none is.

    New names are "between", within the convex hull of a slice; where muscle is labelled, "flank" for what lies there
    outside the hull of the viscera, and "visceral fat" for what lies inside, since such maps name bowel too;
    "shell 0" .. "shell 9"; and, where no bone is labelled but an aorta is, "bone" behind it.
    """
    ids, spacing = anatomy.ids.astype(np.int32), anatomy.spacing
    names = dict(anatomy.names)
    number = {name: value for value, name in names.items()}
    complete = {"bone", "muscle", "bowel"} <= set(number)
    for name in ("between", "bone", "flank", "visceral fat", *(f"shell {k}" for k in range(SHELLS))):
        number.setdefault(name, len(number))
        names[number[name]] = name
    if number["bone"] not in ids and "aorta" in number:
        x, y = np.ogrid[: ids.shape[0], : ids.shape[1]]
        for z in range(ids.shape[2]):
            where = np.argwhere(ids[..., z] == number["aorta"])
            if len(where):
                cx, cy = where.mean(0) + np.array([12, -30]) / spacing
                disc = ((x - cx) ** 2 + (y - cy) ** 2 < (20 / spacing) ** 2) & (ids[..., z] == 0)
                ids[..., z][disc] = number["bone"]
    pad = round(SHELLS * SHELL / spacing)
    ids = np.pad(ids, ((pad, pad), (pad, pad), (0, 0)))
    scan = anatomy.scan
    if scan is not None:
        scan = np.pad(scan, ((pad, pad), (pad, pad), (0, 0)), constant_values=-1000)
    body = _hulls(ids > 0)
    outside = distance_transform_edt(~body, sampling=spacing)
    shell = np.minimum(outside // SHELL, SHELLS).astype(int)
    shells = np.array([*(number[f"shell {k}"] for k in range(SHELLS)), 0])
    between = np.where(body, number["between"], shells[shell])
    if complete:
        parietal = np.isin(ids, [number[name] for name in PARIETAL if name in number])
        inner = _hulls((ids > 0) & ~parietal)
        between[body] = np.where(inner, number["visceral fat"], number["flank"])[body]
    return anatomy._replace(ids=np.where(ids > 0, ids, between).astype(np.uint8), names=names, scan=scan)


def _hulls(mask: np.ndarray) -> np.ndarray:
    """Return the convex hull of each axial slice, smoothed from slice to slice, with the mask itself."""
    hulls = np.zeros(mask.shape, np.float32)
    grid = np.argwhere(np.ones(mask.shape[:2], bool))
    for z in range(mask.shape[2]):
        points = np.argwhere(mask[..., z])
        try:
            hulls[..., z] = (Delaunay(points).find_simplex(grid) >= 0).reshape(mask.shape[:2])
        except (QhullError, ValueError):  # fewer than three points, or on one line
            hulls[..., z] = mask[..., z]
    return (gaussian_filter1d(hulls, 1.5, axis=2, mode="nearest") > 0.5) | mask
