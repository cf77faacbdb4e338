"""Pictures of a cross-validation: boxes, curves of all folds, and a case with its reference."""

import math

import nibabel as nib
import numpy as np
from figures import panels, texts

from mambamim_nets.cross_validate.pictures import box_figure, case_figure, folds_figure


def test_boxes_leave_out_what_is_not_finite():
    figure = box_figure({"a": [0.5, math.nan, 0.75], "b": [math.nan]}, "title")
    assert [text.get_text() for text in figure.axes[0].get_xticklabels()] == ["a", "b"]
    medians = [line.get_ydata()[0] for line in figure.axes[0].lines if len(set(line.get_ydata())) == 1]
    assert 0.625 in medians


def test_curves_of_folds_lie_over_one_another_without_what_a_fold_has_not_measured(tmp_path):
    for name, dice in (("fold 0", "0.5"), ("fold 1", "")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "progress.csv").write_text(f"epoch,train_loss,val_mean_dice\n1,0.75,{dice}\n2,0.25,{dice}\n")
    figure = folds_figure({name: tmp_path / name for name in ("fold 0", "fold 1")}, "folds")
    loss, dice = figure.axes
    assert [line.get_ydata().tolist() for line in loss.lines] == [[0.75, 0.25]] * 2
    assert [line.get_ydata().tolist() for line in dice.lines] == [[0.5, 0.5]]


def test_a_case_is_turned_to_ras_with_its_label_maps(tmp_path):
    values = np.zeros((8, 9, 10), np.uint8)
    values[1:4, 2:5, 3:6] = 1
    for name, affine in (("image", [-1, -1, 2]), ("pred", [-1, -1, 2]), ("true", [-1, -1, 2])):
        image = nib.Nifti1Image(values, np.diag([*map(float, affine), 1.0]))
        nib.save(image, tmp_path / f"{name}.nii.gz")
    figure = case_figure(
        str(tmp_path / "image.nii.gz"), tmp_path / "pred.nii.gz", str(tmp_path / "true.nii.gz"), {1: "liver"}, "worst"
    )
    assert len(panels(figure)) == 6 and "0.05 ml prediction / 0.05 ml reference" in texts(figure)
    assert "sagittal 6/8" in texts(figure), "voxel 2 of 0 to 7, counted from the other side"
