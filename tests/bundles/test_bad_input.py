"""Bad input: one error that names file, value and remedy before training starts; in pre-training, a named exclusion."""

import gzip
import json
import logging
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from helpers import finished, message_of

from mambamim_nets import HyMamba, HyMambaSeg
from mambamim_nets import bundle as mb


def rewrite(path, change):
    image = nib.load(path)
    array = np.asarray(image.dataobj).copy()
    nib.save(nib.Nifti1Image(change(array), image.affine), path)


def with_value(value, dtype=None):
    def change(array):
        array = array.astype(dtype or array.dtype)
        array[3, 4, 5] = value
        return array

    return change


def truncate(path):
    Path(path).write_bytes(Path(path).read_bytes()[:-2000])


BREAKS = {
    "truncated gzip": ("image", truncate, "; copy or download it again"),
    "NaN": ("image", lambda p: rewrite(p, with_value(np.nan, np.float32)), "voxels are NaN or infinite"),
    "4-D": ("image", lambda p: rewrite(p, lambda a: np.stack([a, a], -1)), "must be 3-D; extract one volume"),
    "label value": ("label", lambda p: rewrite(p, with_value(7)), "label values 7 must be among [0, 1, 2]"),
    "sizes": ("label", lambda p: rewrite(p, lambda a: a[:-1]), "must equal the image's"),
    "empty": ("image", lambda p: rewrite(p, np.zeros_like), "every voxel is 0, so it is empty"),
}


@pytest.fixture
def broken(data, tmp_path):
    """Return a function that copies the data set and breaks one file of it per kind of damage."""

    def make(*kinds):
        folder = Path(shutil.copytree(data, tmp_path / "broken"))
        cases = json.loads((folder / "dataset.json").read_text())["training"]
        files = []
        for kind, case in zip(kinds, cases, strict=False):
            which, damage, _ = BREAKS[kind]
            files.append(folder / case[which])
            damage(files[-1])
        return folder, files

    return make


@pytest.mark.parametrize("kind", BREAKS)
def test_a_broken_case_ends_training_before_it_starts(workflow, broken, tmp_path, kind):
    folder, (file,) = broken(kind)
    message = message_of(workflow, "msd_seg", dataset_dir=str(folder), output_dir=str(tmp_path / "run"), max_epochs=1)
    assert "1 problems in 1 of 6 cases" in message
    assert file.name in message and BREAKS[kind][2] in message
    assert not list((tmp_path / "run").glob("*.pt"))


def test_a_run_names_every_broken_case_at_once(bundle_run, broken, tmp_path):
    folder, files = broken("truncated gzip", "NaN", "label value")
    outcome = bundle_run("msd_seg", dataset_dir=str(folder), output_dir=str(tmp_path / "run"))
    assert outcome.status == 1
    assert "3 problems in 3 of 6 cases" in outcome.log
    for kind, file in zip(("truncated gzip", "NaN", "label value"), files, strict=True):
        assert any(file.name in line and BREAKS[kind][2] in line for line in outcome.lines), kind
    assert not list((tmp_path / "run").glob("*.pt"))


@pytest.mark.usefixtures("narrow")
def test_pretraining_leaves_broken_scans_out_by_name_and_goes_on(workflow, broken, tmp_path, caplog):
    kinds = ("truncated gzip", "NaN", "4-D", "empty")
    folder, files = broken(*kinds)
    with caplog.at_level(logging.WARNING, "mambamim_nets"):
        made = workflow("pretrain", sources=[str(folder)], output_dir=str(tmp_path / "run"), max_epochs=1)
        finished(made)
    assert "4 of 8 images left out" in caplog.text
    for kind, file in zip(kinds, files, strict=True):
        assert any(file.name in line and BREAKS[kind][2] in line for line in caplog.text.splitlines()), kind
    assert (tmp_path / "run" / "encoder.pt").is_file()


def test_a_scan_that_breaks_during_pretraining_is_replaced(data, tmp_path, caplog):
    from monai.data import Dataset
    from monai.transforms import LoadImaged

    folder = Path(shutil.copytree(data, tmp_path / "data"))
    items = [{"image": str(path)} for path in sorted((folder / "imagesTr").iterdir())]
    dataset = Dataset(items, mb.ReplaceUnreadabled("image", LoadImaged("image")))
    first = dataset[0]
    truncate(items[1]["image"])
    with caplog.at_level(logging.WARNING, "mambamim_nets"):
        assert dataset[1] is first
    assert items[1]["image"] in caplog.text and "another scan takes its place" in caplog.text


def test_a_missing_data_folder(workflow, tmp_path):
    nowhere = str(tmp_path / "nowhere")
    for name in ("msd_seg", "pretrain"):
        message = message_of(workflow, name, dataset_dir=nowhere, output_dir=str(tmp_path / "run"))
        assert (
            f"option --dataset_dir {nowhere!r} must be the folder of a data set as downloaded, or 'phantom'" in message
        )


def test_a_data_set_that_calls_label_values_otherwise(bundle_run, reliability, data, tmp_path):
    folder = Path(shutil.copytree(data, tmp_path / "data"))
    listed = folder / "dataset.json"
    content = json.loads(listed.read_text())
    listed.write_text(json.dumps(content | {"labels": {"1": "posterior", "2": "anterior"}}))
    outcome = bundle_run("msd_seg", dataset_dir=str(folder), max_epochs=1)
    assert "'labels' contradict this task: 'posterior' is 1 there and 2 in this task" in outcome.last
    assert not list((tmp_path / "out").glob("*.pt"))
    reliability("Data sets", "a dataset.json whose names have other label values than the task's", outcome)


def test_a_wrong_number_of_channels(data, tmp_path):
    modalities = ["flair", "t1ce", "t1", "t2"]
    with pytest.raises(ValueError, match=r"(?s)6 problems.*shape .*must be 4-D with in_channels 4 as its last axis"):
        mb.labelled(str(data), modalities, {"anterior": 1, "posterior": 2}, str(tmp_path / "check.json"))
    with pytest.raises(ValueError, match="0 of 8 images can be used"):
        mb.unlabelled([str(data)], 4, str(tmp_path / "check.json"))
    with pytest.raises(ValueError, match=r"(?s)0 of 2 scans .* can be segmented.*must be 4-D with in_channels 4"):
        mb.scans(str(data / "imagesTs"), str(tmp_path), modalities)


def test_an_unknown_task_lists_the_tasks(workflow, tmp_path):
    message = message_of(workflow, "msd_seg", task="Task99_Nose", output_dir=str(tmp_path / "run"))
    assert "task 'Task99_Nose' is unknown" in message
    assert "choose one of ['LeftAtrium', 'Task04_Hippocampus', 'Task07_Pancreas'" in message


def test_a_task_without_shipped_weights_refuses_inference(bundle_run, data, tmp_path):
    outcome = bundle_run("msd_seg", ["inference", "tasks/Task09_Spleen"], input=str(data / "imagesTs"))
    assert outcome.status == 1
    assert "ships no weights for this task; train first, then give --checkpoint path/to/model_best.pt" in outcome.last
    assert not list(tmp_path.rglob("*.nii.gz"))


def save(path, network):
    torch.save(network.state_dict(), path)
    return path


def test_weights_that_do_not_fit(tmp_path):
    garbage = tmp_path / "garbage.pt"
    garbage.write_bytes(gzip.compress(b"no weights"))
    with pytest.raises(FileNotFoundError, match=r"nowhere\.pt do not exist"):
        mb.trained_network(HyMambaSeg(1, 3, size="tiny"), str(tmp_path / "nowhere.pt"))
    with pytest.raises(ValueError, match=r"garbage\.pt cannot be read as a state dict"):
        mb.trained_network(HyMambaSeg(1, 3, size="tiny"), str(garbage))
    tiny = save(tmp_path / "tiny.pt", HyMambaSeg(1, 3, size="tiny"))
    with pytest.raises(ValueError, match="use --size tiny"):
        mb.trained_network(HyMambaSeg(1, 3, size="base"), str(tiny))
    base = save(tmp_path / "encoder.pt", HyMamba(1, size="base"))
    with pytest.raises(ValueError, match="use --size base"):
        mb.start_network(HyMambaSeg(1, 3, size="tiny"), str(base))


def test_inference_never_runs_with_weights_of_another_size(workflow, data, network_file, tmp_path):
    options = {"input": str(data / "imagesTs"), "output_dir": str(tmp_path), "checkpoint": str(network_file)}
    message = message_of(workflow, "msd_seg", ["inference"], size="base", **options)
    assert "the file holds size 'tiny', the network is size 'base': use --size tiny" in message
    assert not list(tmp_path.glob("*.nii.gz"))


def test_an_unknown_fold(workflow, data, tmp_path):
    message = message_of(workflow, "msd_seg", dataset_dir=str(data), output_dir=str(tmp_path / "run"), fold=5)
    assert "fold 5 must be 0..4 or 'all'" in message


def test_a_multi_gpu_configuration_without_torchrun_says_how_to_start_it(monkeypatch):
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    with pytest.raises(RuntimeError, match=r"must be started by torchrun, e\.g\. torchrun --nproc_per_node=2"):
        mb.init_distributed()
