"""The weights and the configuration that are handed over, and files of the bundle that are somebody's own."""

import json

import pytest
import torch

from mambamim_nets.checkpoint import read_record, read_state
from mambamim_nets.cross_validate.outcome import CONFIG, check_outcome, inference_command, write_outcome
from mambamim_nets.cross_validate.postprocessing import PostProcessing

FOUND = PostProcessing(["anterior"], {"posterior": 0.01}, [])


@pytest.fixture
def trained(work, fake):
    """A cross-validation, whose folds are trained, of two candidates."""
    made = work(
        candidates=["scratch", "networks/segresnet.json+size=base"],
        options={"roi_size": [48, 48, 48], "fold_file": None},
    )
    for run in made.runs:
        fake()(run.steps[0], run.log)
    return made


def test_every_fold_becomes_a_file_of_half_precision(trained):
    files = write_outcome(trained, trained.candidates[0], FOUND, 0.875)
    config = json.loads((trained.bundle / CONFIG).read_text())
    assert config == {
        "shipped": ["models/fold_0.pt", "models/fold_1.pt"],
        "keep_largest": ["anterior"],
        "min_volume_ml": {"posterior": 0.01},
        "roi_size": [48, 48, 48],
    }
    for fold, path in enumerate(config["shipped"]):
        held = torch.load(trained.bundle / path, weights_only=True)
        assert held["weight"].dtype == torch.float16
        whole = read_state(trained.run(trained.candidates[0], fold).folder / "model_best.pt")
        torch.testing.assert_close(read_state(trained.bundle / path)["weight"], whole["weight"], rtol=1e-3, atol=1e-5)
        assert read_record(trained.bundle / path)["task"] == "Task04_Hippocampus"
        assert "mean Dice of all folds 0.8750" in (trained.bundle / path).with_suffix(".txt").read_text()
    assert all(path.is_file() for path in files) and len(files) == 5
    assert CONFIG in inference_command(trained)


def test_the_network_and_the_size_of_a_candidate_go_along(trained):
    write_outcome(trained, trained.candidates[1], PostProcessing(False, {}, []), 0.5)
    config = json.loads((trained.bundle / CONFIG).read_text())
    assert config["size"] == "base" and "SegResNet" in json.dumps(config["network_def"])
    assert config["keep_largest"] is False and config["min_volume_ml"] is None


def test_what_was_written_may_be_written_again_and_what_was_changed_may_not(trained):
    check_outcome(trained)
    write_outcome(trained, trained.candidates[0], FOUND, 0.875)
    check_outcome(trained)
    write_outcome(trained, trained.candidates[0], FOUND, 0.875)
    config = trained.bundle / CONFIG
    config.write_text(config.read_text().replace("0.01", "0.02"))
    with pytest.raises(ValueError, match=r"cross_validated\.json was not written by .* or was changed since; move it"):
        check_outcome(trained)
    check_outcome(trained, overwrite=True)
    config.unlink()
    (trained.bundle / "models" / "fold_1.pt").write_text("my own")
    with pytest.raises(ValueError, match=r"fold_1\.pt was not written by"):
        check_outcome(trained)
