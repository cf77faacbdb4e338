"""Pictures of label maps and of reconstructions: orientation, colours, panels, files."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import mambamim_nets
from mambamim_nets.bundle.visualize.planes import figure_array, save_figure
from mambamim_nets.bundle.visualize.pretraining import reconstruction_figure
from mambamim_nets.bundle.visualize.segmentation import overlay_figure

LABELS = {0: "background", 1: "anterior", 2: "posterior"}
SHAPE = (13, 17, 11)


def scan(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=SHAPE).astype(np.float32)


def label() -> np.ndarray:
    values = np.zeros(SHAPE, np.uint8)
    values[3:8, 4:8, 3:8], values[3:8, 8:12, 3:8] = 1, 2
    return values


def panels(figure) -> list:
    return [axis for axis in figure.axes if axis.images]


def texts(figure) -> str:
    found = [text.get_text() for text in figure.texts]
    found += [text.get_text() for legend in figure.legends for text in legend.get_texts()]
    for axis in figure.axes:
        found += [axis.get_title(), axis.get_ylabel(), *(text.get_text() for text in axis.texts)]
    return "\n".join(found)


def png_size(path) -> tuple[int, int]:
    data = path.read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    return int.from_bytes(data[16:20], "big"), int.from_bytes(data[20:24], "big")


def test_overlay_writes_a_png(tmp_path):
    path = save_figure(overlay_figure(scan(), label(), LABELS, title="case $1_2"), tmp_path / "new" / "a.png")
    assert path == tmp_path / "new" / "a.png"
    width, height = png_size(path)
    assert width > 600
    assert height > 300


def test_reconstruction_writes_a_png(tmp_path):
    visible = np.zeros(SHAPE, bool)
    visible[:6] = True
    figure = reconstruction_figure(scan(), visible, scan(1), title="epoch 3")
    assert min(png_size(save_figure(figure, tmp_path / "r.png"))) > 600


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


def test_overlay_colours_the_label_where_it_is():
    values = np.zeros(SHAPE, np.uint8)
    values[9:12, 12:16, :] = 1  # right anterior: top left of the axial panel
    axes = panels(overlay_figure(np.zeros(SHAPE), values, LABELS))[0]
    boxes = [collection.get_paths()[0].get_extents() for collection in axes.collections]
    assert boxes
    for box in boxes:
        np.testing.assert_allclose((box.x0, box.x1, box.y0, box.y1), (1, 4, 12, 16), atol=1e-6)


def test_planes_cut_the_centre_of_mass_of_the_label():
    assert "axial 6/11" in texts(overlay_figure(scan(), label(), LABELS))
    values = np.zeros(SHAPE, np.uint8)
    values[2, 15, 9] = 2
    shown = texts(overlay_figure(scan(), values, LABELS))
    assert "axial 10/11" in shown
    assert "coronal 16/17" in shown
    assert "sagittal 3/13" in shown


def test_empty_label_takes_the_reference_and_else_the_centre():
    empty = np.zeros(SHAPE, np.uint8)
    values = empty.copy()
    values[2, 15, 9] = 2
    assert "axial 10/11" in texts(overlay_figure(scan(), empty, LABELS, reference=values))
    assert "axial 6/11" in texts(overlay_figure(scan(), empty, LABELS))


def test_legend_states_volumes_in_ml_and_the_convention():
    shown = texts(overlay_figure(scan(), label(), LABELS, spacing=(2, 1, 5)))
    assert "anterior   1.00 ml" in shown  # 5 * 4 * 5 voxels of 10 mm3
    assert "background" not in shown
    assert "the patient's right is on the left" in shown


def test_reference_is_a_second_row():
    figure = overlay_figure(scan(), label(), LABELS, reference=np.zeros(SHAPE), spacing=(2, 1, 5))
    assert len(panels(figure)) == 6
    shown = texts(figure)
    assert "1.00 ml prediction / 0.00 ml reference" in shown
    assert len(panels(overlay_figure(scan(), label(), LABELS))) == 3


def test_spacing_sets_the_shape_of_a_panel():
    axial = panels(overlay_figure(scan(), label(), LABELS, spacing=(1, 1, 4)))[0]
    coronal = panels(overlay_figure(scan(), label(), LABELS, spacing=(1, 1, 4)))[1]
    assert axial.images[0].get_extent() == [0, 13, 0, 17]
    assert coronal.images[0].get_extent() == [0, 13, 0, 44]


def test_reconstruction_panels_share_a_window_and_hide_in_grey():
    visible = np.zeros(SHAPE, bool)
    visible[7:] = True
    figure = reconstruction_figure(scan(), visible, 10 * scan(1))
    axes = panels(figure)
    assert len(axes) == 9
    assert len({axis.images[0].get_clim() for axis in axes}) == 1
    cover = np.asarray(axes[1].images[1].get_array())
    assert (cover[:, :6, 3] == 0).all()  # right side is kept, and drawn on the left
    assert (cover[:, 6:, 3] == 1).all()
    assert f"visible ({100 * 6 / 13:.0f} %)" in texts(figure)


def test_many_classes_and_odd_values(tmp_path):
    labels = {value: f"organ_{value} $x$" for value in range(1, 21)}
    image = scan()
    image[0, 0, 0] = np.nan
    values = np.arange(np.prod(SHAPE)).reshape(SHAPE) % 21
    for figure in (
        overlay_figure(image, values, labels, reference=values),
        overlay_figure(np.zeros(SHAPE), values, labels),
        overlay_figure(np.full(SHAPE, np.nan), values, labels),
    ):
        assert save_figure(figure, tmp_path / "a.png").is_file()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_tensors_with_batch_and_channel(dtype):
    image = torch.from_numpy(scan())[None, None].to(dtype).requires_grad_()
    assert len(panels(overlay_figure(image, torch.from_numpy(label())[None], {"1": "anterior"}))) == 3
    visible = torch.ones(1, 1, *SHAPE, dtype=torch.bool)
    assert len(panels(reconstruction_figure(image, visible, image))) == 9


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


def test_a_reconstruction_shows_what_the_network_was_given():
    figure = reconstruction_figure(scan(), np.ones(SHAPE, bool), scan(1), given=scan(2))
    first = figure.axes[:3]
    assert [axis.get_title() for axis in first] == ["input", "distorted", "rebuilt"]
    shown = [axis.images[0].get_array() for axis in first]
    assert not np.array_equal(shown[0], shown[1]) and not np.array_equal(shown[1], shown[2])
