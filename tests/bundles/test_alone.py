"""Each bundle, copied alone to another folder, does all its work through the command line."""

import nibabel as nib
import numpy as np
import pytest
import torch
from helpers import table

PHANTOM = "{'kind': 'hippocampus', 'cases': 6}"
SEG = ("--roi_size", "[32,32,32]", "--device", "$torch.device('cpu')")
TINY_PRETRAINING = (
    *("--intensity", "mr", "--spacing", "[1,1,1]", "--roi_size", "[32,32,32]", "--decoder_width", "32"),
    *("--max_epochs", "2", "--picture_interval", "1", "--phantom#kind", "hippocampus", "--phantom#cases", "4"),
    *("--device", "$torch.device('cpu')"),
)


@pytest.mark.slow
def test_pretraining_then_segmentation_of_the_copied_bundles(bundle, command, tmp_path):
    pretrain, segment = bundle("pretrain"), bundle("msd_seg")
    output = command(pretrain / "configs/train.json", *TINY_PRETRAINING, cwd=tmp_path)
    assert "mambamim" in output and "from scratch" in output and "synthetic hippocampus data" in output
    run = pretrain / "runs" / "tiny_mambamim"
    for name in ("checkpoint_last.pt", "encoder.pt", "reconstruction.png"):
        assert (run / name).stat().st_size > 1000, name
    assert torch.load(run / "checkpoint_last.pt", weights_only=True)["epoch"] == 2
    assert "train_loss" in (scalars := logged(run / "tensorboard")) and scalars["train_loss"] > 0
    assert not list(tmp_path.iterdir()), "something was written outside the bundle"

    # from inside the bundle's folder, as its README says
    options = ("--pretrained", str(run / "encoder.pt"), "--max_epochs", "1", "--val_interval", "1")
    options = (*options, "--phantom", PHANTOM, *SEG)
    output = command("configs/train.json", *options, cwd=segment)
    assert "starting weights: encoder" in output and f"tensors from {run / 'encoder.pt'}" in output
    run = segment / "runs" / "Task04_Hippocampus_hymamba_tiny_fold0"
    assert (run / "model_best.pt").is_file() and (run / "checkpoint_last.pt").is_file()

    configs = [segment / "configs/train.json", segment / "configs/evaluate.json"]
    output = command(configs, "--phantom", PHANTOM, *SEG, cwd=tmp_path)
    assert f"tensors from {run / 'model_best.pt'}" in output
    rows = table(run / "eval" / "metrics.csv")
    assert len(rows) == 4 and {row["name"] for row in rows} == {"anterior", "posterior"}
    assert all(0 <= float(row["dice"]) <= 1 for row in rows)
    assert "| anterior |" in (run / "eval" / "summary.md").read_text()
    assert len(list((run / "eval").glob("*_overlay.png"))) == 2

    scans = segment / "phantom" / "hippocampus_6" / "imagesTs"
    options = ("--input", str(scans), "--output_dir", "results", "--checkpoint", str(run / "model_best.pt"), *SEG)
    command(segment / "configs/inference.json", *options, cwd=tmp_path)
    inputs = sorted(scans.glob("*.nii.gz"))
    results = sorted((tmp_path / "results").glob("*.nii.gz"))
    assert [r.name for r in results] == [i.name.replace(".nii.gz", "_seg.nii.gz") for i in inputs] and results
    for scan, result in zip(map(nib.load, inputs), map(nib.load, results), strict=True):
        assert scan.shape == result.shape
        np.testing.assert_allclose(result.affine, scan.affine, atol=1e-5)
        assert set(np.unique(np.asarray(result.dataobj)).tolist()) <= {0, 1, 2}
    assert sorted(p.name for p in tmp_path.iterdir()) == ["results"]


def logged(folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder))
    events.Reload()
    assert "reconstruction" in events.Tags()["images"]
    return {tag: events.Scalars(tag)[-1].value for tag in events.Tags()["scalars"]}
