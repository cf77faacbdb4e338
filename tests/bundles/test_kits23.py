"""The two modes of kits23_seg, hierarchical regions and exclusive classes, and that weights belong to one of them."""

import nibabel as nib
import numpy as np
import pytest
import torch
from helpers import finished, refused


@pytest.mark.parametrize("config", ["train", "inference"])
def test_regions_are_the_default_and_exclusive_json_makes_classes(workflow, data_of, tmp_path, config):
    options = {"dataset_dir": str(data_of("kits23_seg")), "output_dir": str(tmp_path), "shipped": "models/model.pt"}
    regions, exclusive = (
        workflow("kits23_seg", configs, **options).parser for configs in ([config], [config, "exclusive"])
    )
    assert regions.get_parsed_content("targets").structures == {
        "kidney and masses": (1, 2, 3),
        "masses": (2, 3),
        "tumour": (2,),
    }
    assert regions.get_parsed_content("network_def").out_channels == 3
    assert exclusive.get_parsed_content("targets").structures == {"kidney": (1,), "tumour": (2,), "cyst": (3,)}
    assert exclusive.get_parsed_content("network_def").out_channels == 4
    assert regions.get("task") != exclusive.get("task")


def test_regions_come_back_as_the_label_map_they_were_made_of(workflow, data_of, tmp_path):
    data = data_of("kits23_seg")
    made = workflow("kits23_seg", dataset_dir=str(data), output_dir=str(tmp_path))
    targets = made.parser.get_parsed_content("targets")
    label = np.asarray(nib.load(sorted((data / "labelsTr").iterdir())[0]).dataobj)
    assert set(np.unique(label)) == {0, 1, 2, 3}
    label = torch.from_numpy(label.astype("int64"))[None]
    assert torch.equal(targets.label_map(targets.masks(label).float()).long(), label)


@pytest.mark.slow
def test_exclusive_classes_train_and_segment_and_regions_refuse_their_weights(workflow, data_of, tmp_path):
    data = data_of("kits23_seg")
    options = {"dataset_dir": str(data), "output_dir": str(tmp_path / "run")}
    finished(workflow("kits23_seg", ["train", "exclusive"], max_epochs=1, val_interval=1, **options))
    scan = sorted((data / "imagesTs").iterdir())[0]
    weights = str(tmp_path / "run" / "model_best.pt")
    options = {"input": str(scan), "output_dir": str(tmp_path / "results"), "checkpoint": weights, "previews": False}
    with refused(
        "task is 'KiTS23_exclusive' in the file and 'KiTS23' in this run",
        "regions is [] in the file and ['kidney and masses', 'masses', 'tumour'] in this run",
    ):
        finished(workflow("kits23_seg", ["inference"], **options))
    assert not list((tmp_path / "results").glob("*.nii.gz"))
    finished(workflow("kits23_seg", ["inference", "exclusive"], **options))
    (result,) = (tmp_path / "results").glob("*.nii.gz")
    assert np.asarray(nib.load(result).dataobj).max() <= 3


def test_exclusive_inference_never_takes_the_shipped_weights(workflow, data_of, tmp_path):
    options = {"input": str(data_of("kits23_seg") / "imagesTs"), "output_dir": str(tmp_path)}
    with refused("ships no weights for this task; train first, then give --checkpoint path/to/model_best.pt"):
        finished(workflow("kits23_seg", ["inference", "exclusive"], **options))
    assert not list(tmp_path.rglob("*.nii.gz"))
