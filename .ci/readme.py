"""Run what a README tells users of the installed package: its Python, and its command for a scan. See .ci/installed.

    python readme.py README.md

The working directory has ``bundles``; it gets a synthetic ``scan.nii.gz`` and results. What needs DICOM, an extra, a
download or a GPU is left out.
"""

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np

import mambamim_nets
from mambamim_nets import phantom


def main(page: str) -> None:
    """Run the commands of a page for scans, then its Python, and compare their label maps."""
    assert "site-packages" in mambamim_nets.__file__, f"{mambamim_nets.__file__} is no installed package"
    text = Path(page).read_text(encoding="utf-8")
    blocks = re.findall(r"^```\w*\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    shutil.copyfile(next((phantom.write(Path("phantom"), "abdomen", cases=1) / "imagesTr").iterdir()), "scan.nii.gz")
    commands = [line for block in blocks for line in block.splitlines() if "--input scan.nii.gz" in line]
    # up to a loop, which has made-up names and a GPU
    python = [block.partition("\nfor ")[0] for block in blocks if "from mambamim_nets import" in block]
    assert commands and len(python) > 1, f"{page} tells nothing that could be run"
    for command in commands:
        print(command, flush=True)
        subprocess.run(shlex.split(command), check=True)
    ours = np.asarray(nib.load("results/scan_seg.nii.gz").dataobj).copy()
    Path("results").rename("results_of_command")  # where the Python below saves its own
    for block in python:
        print(block, flush=True)
        names: dict = {}
        exec(block, names)
        if "result" in names:
            np.testing.assert_array_equal(np.asarray(names["result"].labels.dataobj), ours)


if __name__ == "__main__":
    main(sys.argv[1])
