"""A written data set: in the Decathlon layout, whole or not there, reused or refused."""

import json
import threading

import nibabel as nib
import numpy as np
import pytest
from monai.data import load_decathlon_datalist

from mambamim_nets import phantom
from mambamim_nets.phantom import KINDS, dataset

SMALL = {kind: (56, 48, 48) for kind in KINDS} | {"hippocampus": (36, 50, 34)}


@pytest.mark.parametrize("kind", KINDS)
def test_written_folder_is_a_decathlon_data_set(tmp_path, kind):
    folder = phantom.write(tmp_path / "data" / kind, kind, cases=2, shape=SMALL[kind])
    listing = json.loads((folder / "dataset.json").read_text())
    assert "synthetic" in listing["description"] and "not patient data" in listing["description"]
    assert listing["licence"] == "CC0-1.0" and listing["numTraining"] == 2 and listing["name"] == f"Phantom-{kind}"
    assert listing["labels"] == {"0": "background"} | {str(v): n for v, n in KINDS[kind].labels.items()}
    training = load_decathlon_datalist(folder / "dataset.json", data_list_key="training")
    assert len(training) == 2 and len(load_decathlon_datalist(folder / "dataset.json", data_list_key="test")) == 2
    image, label = nib.load(training[0]["image"]), nib.load(training[0]["label"])
    assert image.get_data_dtype() == (np.int16 if KINDS[kind].modalities[0].startswith("CT") else np.float32)
    assert label.get_data_dtype() == np.uint8 and image.header["qform_code"] == image.header["sform_code"] == 1
    assert image.shape[:3] == label.shape == SMALL[kind] and image.header.get_xyzt_units()[0] == "mm"
    np.testing.assert_allclose(image.affine, label.affine)
    assert [path.name for path in folder.parent.iterdir()] == [kind]


def test_second_write_reuses_and_another_request_is_refused(tmp_path, caplog):
    folder = tmp_path / "spleen"
    with caplog.at_level("INFO", logger="mambamim_nets"):
        phantom.write(folder, "spleen", cases=1, shape=SMALL["spleen"])
        before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
        phantom.write(folder, "spleen", cases=1, shape=SMALL["spleen"])
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before
    assert [("writing" in text, "reusing" in text) for text in caplog.messages] == [(True, False), (False, True)]
    assert all("synthetic" in text and str(folder) in text for text in caplog.messages)
    for other in ({"cases": 2}, {"seed": 1}, {"shape": (60, 48, 48)}):
        with pytest.raises(FileExistsError, match="name another"):
            phantom.write(folder, "spleen", **{"cases": 1, "shape": SMALL["spleen"]} | other)
    (folder / "labelsTr" / "phantom_000.nii.gz").unlink()
    with pytest.raises(FileExistsError, match=r"lacks ./labelsTr/phantom_000"):
        phantom.write(folder, "spleen", cases=1, shape=SMALL["spleen"])


@pytest.mark.parametrize(
    "content", [{"notes.txt": "mine"}, {"dataset.json": '{"training": []}'}, {"dataset.json": "[]"}]
)
def test_foreign_folder_is_refused_and_left_alone(tmp_path, content):
    for name, text in content.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(FileExistsError, match="name a new folder"):
        phantom.write(tmp_path, "spleen", cases=1, shape=SMALL["spleen"])
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == content


def test_interrupted_write_leaves_nothing(tmp_path, monkeypatch):
    calls = iter(range(9))

    def interrupted(*arguments):
        if next(calls) == 2:
            raise KeyboardInterrupt
        return original(*arguments)

    original = phantom.make
    monkeypatch.setattr(dataset, "make", interrupted)
    with pytest.raises(KeyboardInterrupt):
        phantom.write(tmp_path / "spleen", "spleen", cases=3, shape=SMALL["spleen"])
    assert list(tmp_path.iterdir()) == []


def test_concurrent_writers_agree_on_one_data_set(tmp_path, monkeypatch):
    barrier, results, original = threading.Barrier(2), [], dataset._build

    def build(*arguments):
        original(*arguments)
        barrier.wait(timeout=60)  # both are about to publish

    monkeypatch.setattr(dataset, "_build", build)

    def writer():
        results.append(phantom.write(tmp_path / "spleen", "spleen", cases=1, shape=SMALL["spleen"]))

    threads = [threading.Thread(target=writer) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [tmp_path / "spleen"] * 2
    assert [path.name for path in tmp_path.iterdir()] == ["spleen"]
    assert len(list((tmp_path / "spleen").rglob("*.nii.gz"))) == 4


def test_empty_folder_is_filled_and_cases_must_be_positive(tmp_path):
    assert (phantom.write(tmp_path, "hippocampus", cases=1) / "dataset.json").is_file()
    with pytest.raises(ValueError, match="cases 0"):
        phantom.write(tmp_path, "hippocampus", cases=0)


def test_written_points_are_those_of_the_subjects(tmp_path):
    folder = phantom.write(tmp_path / "heads", "fetal", cases=2, spacing=5)
    header, *rows = (folder / "landmarks.csv").read_text().splitlines()
    assert header == "case,name,x,y,z,frame" and len(rows) == 4 * 6, "of new subjects too"
    seed = int(np.random.SeedSequence([0, 3]).generate_state(1)[0])
    case, name, *place, frame = rows[-1].split(",")
    assert (case, name, frame) == ("phantom_003", "ADV_end", "RAS")
    np.testing.assert_allclose([float(mm) for mm in place], phantom.landmarks("fetal", seed)[name], atol=1e-4)
