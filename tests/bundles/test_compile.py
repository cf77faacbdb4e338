"""torch.compile as a switch: what a compiled run leaves is what an uncompiled one reads, and the other way round.

The networks are wrapped as they are for any user, but not compiled, which takes minutes.
"""

import nibabel as nib
import numpy as np
import pytest
import torch
from helpers import finished
from torch._dynamo import OptimizedModule

from mambamim_nets import HyMamba, HyMambaSeg


@pytest.fixture(autouse=True)
def uncompiled():
    with torch.compiler.set_stance("force_eager"):
        yield


def run(workflow, name, configs, engine, **options):
    made = workflow(name, configs, **options)
    finished(made)
    network = made.parser.get_parsed_content(engine).network
    assert isinstance(network, OptimizedModule) is (options["compile"] == "true")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Will convert to PyTorch Tensor if using compile")
def test_a_compiled_run_resumes_uncompiled_and_segments_compiled(workflow, data, tmp_path):
    options = {"dataset_dir": str(data), "output_dir": str(tmp_path / "run"), "val_interval": 1}
    options |= {"resume_with_changes": "true"}  # to go on with more epochs
    for epoch, compiled in ((1, "true"), (2, "false")):
        run(workflow, "msd_seg", ["train"], "train#trainer", max_epochs=epoch, compile=compiled, **options)
        state = torch.load(tmp_path / "run" / "checkpoint_last.pt", weights_only=True)
        best = torch.load(tmp_path / "run" / "model_best.pt", weights_only=True)
        assert state["epoch"] == epoch
        assert state["model"].keys() == best.keys() == HyMambaSeg(1, 3, size="tiny").state_dict().keys()
    scan = sorted((data / "imagesTs").iterdir())[0]
    found = []
    for compiled in ("true", "false"):
        options = {"input": str(scan), "output_dir": str(tmp_path / compiled), "previews": False}
        options["checkpoint"] = str(tmp_path / "run" / "model_best.pt")
        run(workflow, "msd_seg", ["inference"], "evaluator", compile=compiled, **options)
        (result,) = (tmp_path / compiled).glob("*_seg.nii.gz")
        found.append(np.asarray(nib.load(result).dataobj))
    assert np.array_equal(*found)


@pytest.mark.slow
def test_compiled_pretraining_leaves_an_encoder_with_its_own_keys(workflow, data, tmp_path):
    options = {"dataset_dir": str(data), "output_dir": str(tmp_path), "max_epochs": 1, "compile": "true"}
    run(workflow, "pretrain", ["train"], "train#trainer", **options)
    encoder = torch.load(tmp_path / "encoder.pt", weights_only=True)
    assert encoder.keys() == HyMamba(1, size="tiny").state_dict().keys()
