"""What all pictures share: orientation, panels, what they refuse, files."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from figures import LABELS, SHAPE, label, panels, scan
from matplotlib.image import imread

import mambamim_nets
from mambamim_nets.bundle.visualize.planes import figure_array, save_figure
from mambamim_nets.bundle.visualize.pretraining import reconstruction_figure
from mambamim_nets.bundle.visualize.segmentation import overlay_figure


@pytest.mark.usefixtures("full_pictures")
def test_a_picture_is_a_png_in_a_folder_that_is_made_for_it(tmp_path):
    path = save_figure(overlay_figure(scan(), label(), LABELS, title="case $1_2"), tmp_path / "new" / "a.png")
    assert path == tmp_path / "new" / "a.png"
    height, width, channels = imread(path).shape
    assert width > 600 and height > 300 and channels in (3, 4)


@pytest.mark.parametrize(
    ("panel", "axis", "corner"),
    [
        # a bright voxel block at right, anterior, superior must come out top left where those axes are drawn
        (0, (0, 1), "top left"),
        (1, (0, 2), "top left"),
        (2, (1, 2), "top left"),
    ],
    ids=["axial", "coronal", "sagittal"],
)
def test_radiological_convention(panel, axis, corner):
    image = np.zeros(SHAPE, np.float32)
    index = [n // 2 for n in SHAPE]
    for i in axis:
        index[i] = SHAPE[i] - 1
    image[tuple(index)] = 1
    axes = panels(overlay_figure(image, np.zeros(SHAPE), LABELS, window=(0, 1)))[panel]
    drawn = np.asarray(axes.images[0].get_array())
    assert axes.images[0].origin == "upper"
    assert drawn[0, 0] == 1
    assert np.count_nonzero(drawn) == 1
    letters = [text.get_text() for text in axes.texts]
    assert letters == [["R", "L", "A", "P"], ["R", "L", "S", "I"], ["A", "P", "S", "I"]][panel]


def test_spacing_sets_the_shape_of_a_panel():
    axial = panels(overlay_figure(scan(), label(), LABELS, spacing=(1, 1, 4)))[0]
    coronal = panels(overlay_figure(scan(), label(), LABELS, spacing=(1, 1, 4)))[1]
    assert axial.images[0].get_extent() == [0, 13, 0, 17]
    assert coronal.images[0].get_extent() == [0, 13, 0, 44]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_tensors_with_batch_and_channel(dtype):
    image = torch.from_numpy(scan())[None, None].to(dtype).requires_grad_()
    assert len(panels(overlay_figure(image, torch.from_numpy(label())[None], {"1": "anterior"}))) == 3
    visible = torch.ones(1, 1, *SHAPE, dtype=torch.bool)
    assert len(panels(reconstruction_figure(image, visible, image))) == 9


@pytest.mark.usefixtures("full_pictures")
def test_figure_array_is_rgb_for_tensorboard():
    figure = reconstruction_figure(scan(), np.ones(SHAPE, bool), scan())
    array = figure_array(figure)
    assert array.dtype == np.uint8
    assert array.shape[2] == 3
    np.testing.assert_allclose(array.shape[1::-1], figure.get_size_inches() * 100, atol=1)
    assert array.std() > 10


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: overlay_figure(scan(), label()[1:], LABELS), r"label \(12, 17, 11\) must have the shape of image"),
        (lambda: overlay_figure(scan(), label(), LABELS, reference=label()[1:]), "reference .* must have the shape"),
        (lambda: overlay_figure(scan()[0], label(), LABELS), r"image \(17, 11\) must be \(D, H, W\)"),
        (lambda: overlay_figure(np.stack([scan()] * 2), label(), LABELS), "choose one sample and one channel"),
        (lambda: overlay_figure(scan(), label(), LABELS, window=(1, 1)), r"window \(1, 1\) must be"),
        (lambda: reconstruction_figure(scan(), np.ones((2, 2, 2), bool), scan()), "visible .* must have the shape"),
        (lambda: reconstruction_figure(scan(), scan() > 0, scan()[1:]), "rebuilt .* must have the shape"),
    ],
)
def test_bad_arguments(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_matplotlib_is_imported_on_first_use_and_pyplot_never(tmp_path):
    package = Path(mambamim_nets.__file__).parent
    folders = {"mambamim_nets": str(package), "mambamim_nets.bundle": str(package / "bundle")}
    code = (  # packages without what their __init__ imports
        "import sys, types, numpy as np\n"
        f"for name, folder in {folders}.items():\n"
        "    sys.modules[name] = types.ModuleType(name); sys.modules[name].__path__ = [folder]\n"
        "import mambamim_nets.bundle.visualize.segmentation as module\n"
        "assert not any(name.startswith('matplotlib') for name in sys.modules)\n"
        "figure = module.overlay_figure(np.zeros((4, 5, 6)), np.ones((4, 5, 6)), {1: 'a'})\n"
        "from mambamim_nets.bundle.visualize.planes import save_figure\n"
        f"save_figure(figure, {str(tmp_path / 'a.png')!r})\n"
        "assert 'matplotlib.pyplot' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
