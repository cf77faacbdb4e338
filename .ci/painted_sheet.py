"""Draw a sheet of random painted axial slices beside slices of real scans, as the network gets both.

    python .ci/painted_sheet.py docs/images/painted.png --anatomy "[{'path': 'label_maps/totalseg_s0327'}, ...]"
        --scans totalsegmentator/ct_abdomen_3mm/image.nii.gz unlabelled/CRLM-CT-1004_ct_abdomen.nii.gz

`--anatomy` is that of a bundle's starter.json, for the organs of btcv_seg. Both kinds of slices have 4 mm pixels and
the window of that bundle, -175 to 250 HU. The first four columns are painted, the others real.
"""

import argparse
import ast
from pathlib import Path

import matplotlib.image
import numpy as np
from monai.transforms import Compose, LoadImage, Orientation, Spacing

from mambamim_nets.bundle import PaintedCrops
from mambamim_nets.phantom import KINDS

SPACING = 4.0  # mm
SHAPE = (96, 80, 48)  # voxels of a painted crop; a slice of it is drawn
ROWS, PAINTED, REAL = 6, 4, 2
WINDOW = (-175, 250)  # HU
ENLARGED = 2


def painted_slices(anatomy: list[dict], seed: int) -> list[np.ndarray]:
    """Paint crops of random bodies and return of each the slice that shows most of the patient."""
    labels = {name: value for value, name in KINDS["abdomen"].labels.items()}
    crops = PaintedCrops(anatomy, labels, SHAPE, (SPACING,) * 3, ROWS * PAINTED, lambda data: data, random_style=0.1)
    crops.set_random_state(seed)
    images = [crops[index]["image"][0] for index in range(ROWS * PAINTED)]
    return [image[..., (image > -500).sum((0, 1)).argmax()] for image in images]


def real_slices(scans: list[Path]) -> list[np.ndarray]:
    """Return slices at equal distances from the middle four fifths of each scan."""
    load = Compose([LoadImage(ensure_channel_first=True), Orientation("RAS", labels=None), Spacing((SPACING,) * 3)])
    slices = []
    for number, path in enumerate(scans):
        volume = np.asarray(load(path))[0]
        count = len(range(number, ROWS * REAL, len(scans)))
        places = np.linspace(0.1, 0.9, count) * (volume.shape[2] - 1)
        slices += [_fitted(volume[..., int(z)]) for z in places]
    return slices


def _fitted(image: np.ndarray) -> np.ndarray:
    """Crop or pad a slice to SHAPE about the middle of the patient, or of what is brighter than fat at least."""
    where = np.argwhere(image > -150)
    low = np.round((where.min(0) + where.max(0)) / 2).astype(int) - np.array(SHAPE[:2]) // 2
    padded = np.pad(image, [(side, side) for side in SHAPE[:2]], constant_values=-1000)
    x, y = low + np.array(SHAPE[:2])
    return padded[x : x + SHAPE[0], y : y + SHAPE[1]]


def main() -> None:
    """Read the options and write the sheet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path)
    parser.add_argument("--anatomy", type=ast.literal_eval, required=True)
    parser.add_argument("--scans", type=Path, nargs="+", required=True)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    painted, real = painted_slices(options.anatomy, options.seed), real_slices(options.scans)
    rows = [painted[row * PAINTED :][:PAINTED] + real[row * REAL :][:REAL] for row in range(ROWS)]
    sheet = np.vstack(
        [np.hstack([np.pad(image.T[::-1], 1, constant_values=WINDOW[1]) for image in row]) for row in rows]
    )
    sheet = sheet.repeat(ENLARGED, axis=0).repeat(ENLARGED, axis=1)
    matplotlib.image.imsave(options.output, sheet, cmap="gray", vmin=WINDOW[0], vmax=WINDOW[1])


if __name__ == "__main__":
    main()
