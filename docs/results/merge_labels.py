"""Copy a data set with some of its labels under new numbers, each of one or more old ones; all else is background.

    python docs/results/merge_labels.py SOURCE TARGET "{'thalamus': [59, 60], 'brain stem': [35]}"

SOURCE has `imagesTr` and `labelsTr` with the same names of files. In TARGET, a Decathlon folder, images are links.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import fire
import nibabel as nib
import numpy as np


def merge(source: str, target: str, labels: Mapping[str, Sequence[int]]) -> None:
    """Number labels 1, 2, ... in their order; a TARGET that is there is refused."""
    old, new = Path(source), Path(target)
    (new / "imagesTr").mkdir(parents=True)
    (new / "labelsTr").mkdir()
    listed = []
    for image in sorted((old / "imagesTr").glob("*.nii.gz")):
        label = nib.load(old / "labelsTr" / image.name)
        values, merged = np.asarray(label.dataobj), np.zeros(label.shape, np.uint8)
        for number, merges in enumerate(labels.values(), 1):
            merged[np.isin(values, merges)] = number
        nib.save(nib.Nifti1Image(merged, label.affine), new / "labelsTr" / image.name)
        (new / "imagesTr" / image.name).symlink_to(image.resolve())
        listed.append({"image": f"./imagesTr/{image.name}", "label": f"./labelsTr/{image.name}"})
    names = {"0": "background", **{str(number): name for number, name in enumerate(labels, 1)}}
    content = {"channel_names": {"0": "MRI"}, "labels": names, "training": listed}
    (new / "dataset.json").write_text(json.dumps(content, indent=1), encoding="utf-8")


if __name__ == "__main__":
    fire.Fire(merge)
