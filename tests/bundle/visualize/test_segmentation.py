"""Label maps over their scan: colours, planes, legend, reference."""

import numpy as np
from figures import LABELS, SHAPE, label, panels, scan, texts

from mambamim_nets.bundle.visualize.planes import save_figure
from mambamim_nets.bundle.visualize.segmentation import label_colours, overlay_figure


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


def test_many_classes_and_odd_values(tmp_path):
    labels = {value: f"organ_{value} $x$" for value in range(1, 21)}
    image = scan()
    image[0, 0, 0] = np.nan
    values = np.indices(SHAPE).sum(0) % 21
    for figure in (
        overlay_figure(image, values, labels, reference=values),
        overlay_figure(np.zeros(SHAPE), label(), labels),
        overlay_figure(np.full(SHAPE, np.nan), label(), labels),
    ):
        assert save_figure(figure, tmp_path / "a.png").is_file()


def test_a_warning_is_one_line_below_the_title():
    image = np.random.default_rng(0).random((8, 9, 10))
    figure = overlay_figure(image, image > 0.5, {1: "a"}, "title\n" + "look $here " * 40)
    texts = {text.get_text(): text for text in figure.texts}
    note = next(text for name, text in texts.items() if name.startswith("look $here"))
    assert note.get_text().endswith("...") and "\n" not in note.get_text()
    figure.canvas.draw()
    box, title = (text.get_window_extent() for text in (note, texts["title"]))
    assert box.x0 > 0 and box.x1 < figure.bbox.x1
    assert box.y1 < title.y0 and box.y0 > figure.axes[0].title.get_window_extent().y1


def test_colours_are_those_of_the_picture():
    values = label()
    drawn = panels(overlay_figure(scan(), values, LABELS))[0].collections
    lines = [tuple(round(255 * part) for part in collection.get_edgecolor()[0][:3]) for collection in drawn]
    colours = label_colours([2, 1])
    assert lines == [colours[1], colours[2]] and colours[1] != colours[2]
