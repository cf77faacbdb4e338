"""From a data set to a bundle: what is written, what is refused, what a second plan leaves alone."""

import json
import re
from pathlib import Path

import nibabel as nib
import numpy as np
import processes
import pytest
from helpers import REPOSITORY, environment, refused
from plan.conftest import boxes, config_of

from mambamim_nets import HyMamba, phantom
from mambamim_nets.bundle.data.labelled import labelled_cases
from mambamim_nets.bundle.metadata import label_table, region_table


def regions_of(bundle: Path) -> dict:
    assert config_of(bundle)["regions"]["_target_"] == "mambamim_nets.bundle.region_table"
    return region_table(bundle, label_table(bundle))


def test_a_bundle_is_written_with_a_reason_for_each_decision(planned, spleens):
    bundle = planned(spleens)
    train, inference = config_of(bundle), config_of(bundle, "inference")
    assert train["labels"] == inference["labels"] and label_table(bundle) == {"spleen": 1}
    assert train["dataset_dir"] == str(spleens) and train["phantom"] is None
    assert inference["shipped"] == "models/model.pt", "where promote.json puts weights"
    for key in ("intensity", "spacing", "roi_size", "augmentation", "max_epochs", "size", "cache_rate"):
        assert len(train[f"{key}_why"]) > 10, key
    assert train["intensity"]["_target_"] == "ScaleIntensityRanged"
    assert all(side % 16 == 0 for side in train["roi_size"])
    assert (bundle / "docs" / "fingerprint.png").is_file()
    assert "FILL IN" in (bundle / "docs" / "data_license.txt").read_text()
    assert config_of(bundle, "metadata")["network_data_format"]["outputs"]["pred"]["num_channels"] == 2
    folds = config_of(bundle, "folds")["folds"]
    assert sorted(case for fold in folds.values() for case in fold) == [f"phantom_{n:03d}" for n in range(5)]
    page = (bundle / "docs" / "README.md").read_text()
    assert "spleen" in page and max(len(line) for line in page.splitlines() if "|" not in line) < 200


def test_the_body_is_that_of_all_bundles(planned, spleens):
    bundle = planned(spleens, size="base")
    changed = re.compile(r'"(size|cache_rate)": .*')
    for name in ("train", "inference"):
        bodies = [
            changed.sub("", (folder / "configs" / f"{name}.json").read_text().split('    "body"')[1])
            for folder in (bundle, REPOSITORY / "bundles" / "btcv_seg")
        ]
        assert bodies[0] == bodies[1]
        assert config_of(bundle, name)["size"] == "base"


def test_planning_again_changes_nothing_and_keeps_edits(planned, spleens, capsys, reliability):
    bundle = planned(spleens)
    before = {path: path.read_bytes() for path in bundle.rglob("*") if path.is_file() and path.name != "plan.json"}
    planned(spleens)
    assert {path: path.read_bytes() for path in before} == before
    train = bundle / "configs" / "train.json"
    train.write_text(train.read_text().replace('"learning_rate": 0.001', '"learning_rate": 0.002'))
    edited = train.read_bytes()
    with refused("configs/train.json", "--compare") as end:
        planned(spleens)
    reliability("Plans", "a bundle that was edited since it was planned", end.value)
    assert train.read_bytes() == edited
    capsys.readouterr()
    planned(spleens, compare=True)
    shown = capsys.readouterr().out
    assert '-    "learning_rate": 0.002,' in shown and '+    "learning_rate": 0.001,' in shown
    assert train.read_bytes() == edited


def test_a_file_that_planning_did_not_write_is_not_written_over(planned, spleens, tmp_path, reliability):
    mine = tmp_path / "new_seg" / "docs" / "README.md"
    mine.parent.mkdir(parents=True)
    mine.write_text("my own")
    with refused("docs/README.md") as end:
        planned(spleens)
    reliability("Plans", "an output folder with a file of another origin", end.value)
    assert mine.read_text() == "my own"
    assert not (tmp_path / "new_seg" / "configs").exists()


def test_a_dry_run_writes_nothing(planned, spleens, tmp_path, capsys):
    planned(spleens, dry_run=True)
    assert "roi_size" in capsys.readouterr().out
    assert not (tmp_path / "new_seg").exists()


def test_too_little_memory_is_refused(planned, spleens, reliability):
    with refused("--memory_gib 0.1", "size tiny") as end:
        planned(spleens, memory_gib=0.1)
    reliability("Plans", "less memory than the smallest crop takes", end.value, hide=r"[\d.]+(?= GiB)")


def test_an_encoder_is_copied_and_started_from(planned, spleens, tmp_path, reliability):
    import torch

    torch.save(HyMamba(2, size="tiny").state_dict(), tmp_path / "mine.pt")
    bundle = planned(spleens, pretrained=str(tmp_path / "mine.pt"))
    assert (bundle / "models" / "encoder.pt").read_bytes() == (tmp_path / "mine.pt").read_bytes()
    assert config_of(bundle)["pretrained"] == "$@bundle_root + '/models/encoder.pt'"
    assert config_of(bundle)["adapt_input"] is True, "two channels there, one here"
    torch.save(HyMamba(1, size="base").state_dict(), tmp_path / "large.pt")
    with refused("large.pt") as end:
        planned(spleens, "other_seg", pretrained=str(tmp_path / "large.pt"))
    reliability("Plans", "an encoder of another size", end.value)


def test_labels_with_gaps_are_learnt_apart_and_nesting_is_proposed(planned, tmp_path, capsys, reliability):
    data = phantom.write(tmp_path / "brains", "brain", cases=3, shape=(32, 32, 32))
    bundle = planned(data)
    assert config_of(bundle)["channels"] == ["flair", "t1ce", "t1", "t2"]
    assert regions_of(bundle) == {"necrotic core": [1], "oedema": [2], "enhancing tumour": [4]}
    assert "--regions \"{'WT': [1, 2, 4], 'TC': [1, 4], 'ET': [4]}\"" in capsys.readouterr().out
    nested = {"WT": [1, 2, 4], "TC": [1, 4], "ET": [4]}
    assert regions_of(planned(data, "nested_seg", regions=nested)) == nested
    assert "look at: the names of the labels" not in capsys.readouterr().out
    with refused("TC") as end:
        planned(data, "wrong_seg", regions={"TC": [1, 2], "WT": [2, 4]})
    reliability("Plans", "regions that are not nested", end.value)


def test_a_plain_folder_is_planned_by_its_values_or_by_given_names(planned, written, capsys):
    data = written([boxes(n, [1, 2]) for n in range(3)], {"a": 1, "b": 2})
    (data / "dataset.json").unlink()
    assert [item["case"] for item in labelled_cases(data)] == ["case_00", "case_01", "case_02"]
    assert label_table(planned(data)) == {"label 1": 1, "label 2": 2}
    assert label_table(planned(data, "named_seg", labels={"cyst": 1, "liver": 2})) == {"cyst": 1, "liver": 2}
    assert "3 subjects" in capsys.readouterr().out


# --- broken data sets -----------------------------------------------------------------------------


def test_wrong_labels_are_refused_by_file(planned, written, reliability):
    cases = [boxes(n, [1]) for n in range(3)]
    cases[1][1][0, 0, 0] = 7
    with refused("case_01", "label values 7") as end:
        planned(written(cases, {"organ": 1}))
    reliability("Plans", "a label map with a value that is not named", end.value)


def test_labels_of_another_grid_are_refused(planned, written, reliability):
    cases = [boxes(n, [1]) for n in range(3)]
    cases[2] = (cases[2][0], cases[2][1][:-1])
    with refused("case_02", "shape") as end:
        planned(written(cases, {"organ": 1}))
    reliability("Plans", "a label map on another grid than its image", end.value)


def test_one_case_is_refused(planned, written, reliability):
    with refused("case_00", "at least 2 subjects") as end:
        planned(written([boxes(0, [1])], {"organ": 1}))
    reliability("Plans", "a data set of one case", end.value)


def test_one_image_under_two_names_is_refused(planned, written, reliability):
    with refused("case_00", "case_01", "same voxels") as end:
        planned(written([boxes(0, [1]), boxes(0, [1])], {"organ": 1}))
    reliability("Plans", "one image under two names", end.value)


def test_a_spacing_that_is_wrong_everywhere_is_warned_of_with_the_cases(planned, written, capsys):
    planned(written([boxes(n, [1]) for n in range(3)], {"liver": 1}, spacing=(0.2, 0.2, 0.2)))
    shown = capsys.readouterr().out
    assert "every case shows less than 20" in shown and "case_00, case_01, case_02" in shown
    assert "class 'liver' has a median volume" in shown


def test_a_huge_scan_among_small_ones_is_named_and_not_read(planned, written, capsys):
    """A file of 3 GB with holes: its header says so much, and nothing reads it."""
    data = written([boxes(n, [1]) for n in range(3)], {"organ": 1})
    listing = json.loads((data / "dataset.json").read_text())
    for key in ("image", "label"):
        path = data / listing["training"][1][key].replace(".gz", "")
        header = nib.Nifti1Image(np.zeros((1, 1, 1), np.int16), np.diag([2.0, 2.0, 2.0, 1.0])).header
        header.set_sform(np.diag([2.0, 2.0, 2.0, 1.0]), code=1)
        header["dim"][1:4] = (1200, 1200, 1100)
        header["scl_slope"], header["scl_inter"] = 1, 0
        with path.open("wb") as file:
            file.write(header.binaryblock)
            file.truncate(352 + 2 * 1200 * 1200 * 1100)
        listing["training"][1][key] = listing["training"][1][key].replace(".gz", "")
    (data / "dataset.json").write_text(json.dumps(listing))
    bundle = planned(data)
    shown = capsys.readouterr().out
    assert "case case_01: 1200 x 1200 x 1100 voxels (3.0 GiB)" in shown
    assert config_of(bundle, "fingerprint")["header_only"] == ["case_01"]
    assert max(config_of(bundle)["roi_size"]) <= 32


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"size": "huge"}, ["size 'huge'"]),
        ({"memory_gib": -1}, ["memory_gib -1"]),
        ({"workers": 0}, ["workers 0"]),
    ],
    ids=["size", "memory", "workers"],
)
def test_wrong_options_are_refused(options, words, planned, spleens, reliability):
    with refused(*words) as end:
        planned(spleens, **options)
    reliability("Plans", " ".join(f"--{name} {value}" for name, value in options.items()), end.value)


def test_a_bundle_within_the_data_set_is_refused(planned, spleens, reliability):
    with refused("lies in the data set") as end:
        planned(spleens, str(spleens / "inside_seg"))
    reliability("Plans", "an output folder within the data set", end.value)


@pytest.mark.slow
def test_the_command_line_explains_itself_and_refuses_with_one_sentence(tmp_path):
    line = ["-m", "mambamim_nets.plan", "--dataset_dir", "nowhere", "--output", "out_seg"]
    (done,) = processes.run(line, cwd=tmp_path, variables=[environment()])
    assert done.returncode == 1
    assert done.stderr.strip().splitlines()[-1].startswith("error: --dataset_dir nowhere does not exist")
