"""Make a CT of 512 x 512 x 900 voxels of 0.8 mm from a real one, to measure what a bundle takes for it.

    python tests/benchmarks/whole_body.py path/to/ct.nii.gz whole_body.nii.gz
    /usr/bin/time -v python -m monai.bundle run --config_file bundles/btcv_seg/configs/inference.json \\
        --input whole_body.nii.gz --output_dir results --amp false

The CT is interpolated linearly to 0.8 mm, mirrored upwards until it has 900 planes, and has air around it. GNU time,
which is a program of its own so that nothing but the second command is measured, says "Maximum resident set size".
"""

import sys

import nibabel as nib
import numpy as np
from scipy import ndimage

SHAPE, EDGE, AIR = (512, 512, 900), 0.8, -1024


def main(source: str, path: str) -> None:
    image = nib.as_closest_canonical(nib.load(source))
    voxels = np.asarray(image.dataobj, dtype=np.float32)
    voxels = ndimage.zoom(voxels, np.array(image.header.get_zooms()[:3]) / EDGE, order=1).round().astype(np.int16)
    voxels = voxels[: SHAPE[0], : SHAPE[1], : SHAPE[2]]
    missing = [wanted - side for wanted, side in zip(SHAPE, voxels.shape, strict=True)]
    voxels = np.pad(voxels, [(0, 0), (0, 0), (0, missing[2])], mode="symmetric")
    around = [(side // 2, side - side // 2) for side in missing[:2]]
    voxels = np.pad(voxels, [*around, (0, 0)], constant_values=AIR)
    affine = np.diag([EDGE, EDGE, EDGE, 1.0])
    affine[:3, 3] = image.affine[:3, 3]
    nib.save(nib.Nifti1Image(voxels, affine), path)


if __name__ == "__main__":
    main(*sys.argv[1:])
