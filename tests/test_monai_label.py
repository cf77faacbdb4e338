"""Bundles as MONAI Label serves them: laid out for its stock app, and in a slow test asked through its real server.

The server runs in an environment of its own, see docs/SLICER.md; MONAI_LABEL_PYTHON names its interpreter.
"""

import json
import os
import shutil
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import nibabel as nib
import numpy as np
import pytest
import torch
from helpers import BUNDLES, environment
from monai.bundle import ConfigParser, run

from mambamim_nets import phantom, segment
from mambamim_nets.bundle.checkpoint_files import BEST
from mambamim_nets.bundle.data.labelled import labelled_cases
from mambamim_nets.checkpoint import read_state
from mambamim_nets.monai_label import SEGMENTATION, lay_out, served, train

SERVED = ("btcv_seg", "brats_seg", "msd_seg", "kits23_seg")
REAL = {
    "btcv_seg": "totalsegmentator/ct_abdomen_3mm/image.nii.gz",
    "brats_seg": "brats_tcga/mini_2mm/imagesTr",
    "msd_seg": "msd_hippocampus/imagesTr",
    "kits23_seg": "totalsegmentator/ct_abdomen_3mm/image.nii.gz",
}
PATIENCE = 1500  # seconds that a request or the start may take on a busy machine


@pytest.fixture
def app(tmp_path) -> Path:
    """Return a folder that passes for MONAI Label's app."""
    folder = tmp_path / "monaibundle"
    folder.mkdir()
    (folder / "main.py").touch()
    return folder


# --- laying out -----------------------------------------------------------------------------------


def test_labels_are_those_of_the_result_also_for_regions():
    expected = {
        "brats_seg": ["necrotic core", "oedema", "enhancing tumour"],
        "kits23_seg": ["kidney", "tumour", "cyst"],
    }
    for name, structures in expected.items():
        output = served(BUNDLES / name)["metadata"]["network_data_format"]["outputs"]["pred"]
        assert [label for value, label in output["channel_def"].items() if value != "0"] == structures
        assert output["num_channels"] == 3, "the channels are still regions"


def test_the_inferer_is_what_the_bundle_runs():
    config = served(BUNDLES / "btcv_seg")["inference"]
    parser = ConfigParser({**config, "bundle_root": str(BUNDLES / "btcv_seg"), "device": "cpu"})
    inferer = parser.get_parsed_content("inferer")
    assert type(inferer).__name__ == "EnsembleInferer" and inferer.inferer.inferer.overlap == 0.5
    assert inferer.inferer.air is not None


def test_a_copy_has_what_is_served_and_nothing_else(app):
    (place,) = lay_out(str(app), "msd_seg")
    files = {str(path.relative_to(place)) for path in place.rglob("*") if path.is_file()}
    names = ("inference", "metadata", "train", "bundle_train", "from_served")
    configs = {"configs/logging.conf", *(f"configs/{name}.json" for name in names)}
    assert files == configs | {"LICENSE", "models/model.pt", "docs/README.md", "docs/data_license.txt"}
    (place / "models" / "model.pt").write_bytes(b"trained")
    with pytest.raises(FileExistsError, match=r"msd_seg exists, perhaps with weights of its own; .* give --overwrite"):
        lay_out(str(app), ["btcv_seg", "msd_seg"])
    assert (place / "models" / "model.pt").read_bytes() == b"trained" and not (app / "model" / "btcv_seg").exists()
    lay_out(str(app), "msd_seg", overwrite=True)
    assert (place / "models" / "model.pt").read_bytes() != b"trained"


def test_every_segmentation_bundle_is_laid_out_unless_named_otherwise():
    assert set(SEGMENTATION) == {path.name for path in BUNDLES.iterdir() if path.name.endswith("_seg")}


@pytest.mark.parametrize("name", ["brain_cls", "fetal_landmarks", "pretrain"])
def test_what_does_not_segment_is_not_offered(app, name):
    with pytest.raises(ValueError, match=rf"{name} does not segment: its metadata has no label_def"):
        lay_out(str(app), ["msd_seg", name])
    assert not (app / "model").exists()


def test_a_folder_without_the_app_and_a_bundle_without_weights_are_refused(app, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"--app .* must be a folder with main\.py of MONAI Label's app"):
        lay_out(str(tmp_path))
    shutil.copytree(BUNDLES / "msd_seg" / "configs", tmp_path / "bare" / "configs")
    with pytest.raises(ValueError, match=r"bare must have models/model\.pt"):
        lay_out(str(app), str(tmp_path / "bare"))


# --- training -------------------------------------------------------------------------------------


@pytest.fixture
def bundle(app, monkeypatch) -> Path:
    """Return msd_seg as it is served; training it writes weights that are 0 and keeps its command in a file."""

    def run(command: list[str], check: bool) -> subprocess.CompletedProcess:
        options = dict(zip(command[4::2], command[5::2], strict=True))
        folder = Path(options["--output_dir"])
        folder.mkdir(parents=True)
        (folder / "options.json").write_text(json.dumps(options))
        torch.save({key: torch.zeros_like(value) for key, value in read_state(served_weights).items()}, folder / BEST)
        return subprocess.CompletedProcess(command, int(options["--max_epochs"] == "13"))

    (place,) = lay_out(str(app), "msd_seg")
    served_weights = place / "models" / "model.pt"
    monkeypatch.setattr("mambamim_nets.monai_label.subprocess.run", run)
    return place


def submitted(folder: Path, *names: str) -> list[dict[str, str]]:
    """Return cases as MONAI Label lists them, with empty files."""
    items = [
        {"image": str(folder / f"{name}.nii.gz"), "label": str(folder / "final" / f"{name}.nii.gz")} for name in names
    ]
    for path in (Path(path) for item in items for path in item.values()):
        path.parent.mkdir(exist_ok=True)
        path.touch()
    return items


def asked_to_train(bundle: Path, training: list, validation: list, max_epochs: int = 1) -> None:
    """Run train.json with what MONAI Label's BundleTrainTask sets in it."""
    loader = {"_target_": "CheckpointLoader", "load_path": "model.pt", "load_dict": {"model": "$@network"}}
    overrides = {"bundle_root": str(bundle), "device": torch.device("cpu"), "train#trainer#max_epochs": max_epochs}
    overrides |= {"train#dataset#data": training, "train#handlers": [loader], "validate#dataset#data": validation}
    configs = bundle / "configs"
    run(config_file=str(configs / "train.json"), meta_file=str(configs / "metadata.json"), **overrides)


def test_submitted_labels_are_a_data_set_of_the_bundles_own_training(bundle, tmp_path):
    before = (bundle / "models" / "model.pt").read_bytes()
    asked_to_train(bundle, submitted(tmp_path, "one", "two"), submitted(tmp_path, "three"))
    folder = bundle / "runs" / "submitted_1"
    cases = labelled_cases(folder)
    assert {item["case"]: item["listed"] for item in cases} == {
        "one": "training",
        "two": "training",
        "three": "validation",
    }
    assert {os.path.realpath(item["label"]) for item in cases} == {
        os.path.realpath(tmp_path / "final" / f"{name}.nii.gz") for name in ("one", "two", "three")
    }
    options = json.loads((folder / "run" / "options.json").read_text())
    assert options["--fold"] == "official" and options["--max_epochs"] == "1" and options["--device"] == "cpu"
    assert not any(value.any() for value in read_state(bundle / "models" / "model.pt").values()), "trained ones"
    assert (bundle / "models" / "model_before_1.pt").read_bytes() == before
    asked_to_train(bundle, submitted(tmp_path, "one"), [])
    options = json.loads((bundle / "runs" / "submitted_2" / "run" / "options.json").read_text())
    assert options["--fold"] == "all" and (bundle / "models" / "model_before_2.pt").is_file()


def test_training_goes_on_from_the_weights_that_are_served(bundle):
    configs = [str(bundle / "configs" / f"{name}.json") for name in ("bundle_train", "from_served")]
    parser = ConfigParser(ConfigParser.load_config_files(configs) | {"bundle_root": str(bundle), "record": None})
    network = parser.get_parsed_content("initial_network").state_dict()
    for key, value in read_state(bundle / "models" / "model.pt").items():
        torch.testing.assert_close(network[key], value, rtol=0, atol=0)


def test_a_training_that_fails_leaves_the_weights(bundle, tmp_path):
    before = (bundle / "models" / "model.pt").read_bytes()
    with pytest.raises(RuntimeError, match="training of msd_seg ended with exit status 1"):
        train(str(bundle), submitted(tmp_path, "one"), [], 13, "cpu")
    with pytest.raises(ValueError, match="at least one submitted label"):
        train(str(bundle), [], submitted(tmp_path, "one"), 1, "cpu")
    assert (bundle / "models" / "model.pt").read_bytes() == before


# --- the server -----------------------------------------------------------------------------------


class Server:
    """A server of MONAI Label over HTTP, as its clients use it."""

    def __init__(self, port: int, studies: Path, app: Path) -> None:
        self.url, self.studies, self.app = f"http://127.0.0.1:{port}", studies, app

    def ask(self, method: str, path: str, body: bytes | None = None, kind: str = "application/json") -> bytes:
        request = urllib.request.Request(self.url + path, body, {"Content-Type": kind}, method=method)
        with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
            return answer.read()

    def json(self, method: str, path: str, body: Any = None) -> Any:
        return json.loads(self.ask(method, path, None if body is None else json.dumps(body).encode()))

    def infer(self, model: str, image: str, folder: Path) -> nib.Nifti1Image:
        path = folder / f"{uuid4().hex}.nii.gz"
        path.write_bytes(self.ask("POST", f"/infer/{model}?image={image}&output=image"))
        return nib.load(path)

    def upload(self, what: str, query: str, file: Path) -> None:
        """Send a file as the form field of its endpoint: an image, or a label of one."""
        edge, field = uuid4().hex, {"image": "file", "label": "label"}[what]
        head = f'--{edge}\r\nContent-Disposition: form-data; name="{field}"; filename="{file.name}"\r\n\r\n'
        body = head.encode() + file.read_bytes() + f"\r\n--{edge}--\r\n".encode()
        self.ask("PUT", f"/datastore/{what}?{query}", body, f"multipart/form-data; boundary={edge}")


def phantom_scan(bundle: str, folder: Path) -> Path:
    """Write a synthetic scan; several channels are on its last axis, in the order of the bundle."""
    config = ConfigParser.load_config_file(BUNDLES / bundle / "configs" / "inference.json")
    images = phantom.write(folder / "phantom", config["phantom"]["kind"], cases=1) / "imagesTr"
    return next(images.iterdir())


def real_scan(bundle: str, source: Path, folder: Path) -> Path:
    scan = source if source.is_file() else min(source.iterdir())
    if bundle != "brats_seg":
        return scan
    image, order = nib.load(scan), [3, 1, 0, 2]  # stored as t1, t1ce, t2, flair
    path = folder / "ordered.nii.gz"
    nib.save(nib.Nifti1Image(np.asarray(image.dataobj)[..., order], image.affine), path)
    return path


@pytest.fixture(scope="module")
def server(tmp_path_factory) -> Iterator[Server]:
    """Start MONAI Label's stock app with four bundles; nothing is downloaded."""
    python = os.environ.get("MONAI_LABEL_PYTHON")
    if not python:
        pytest.skip(
            "MONAI_LABEL_PYTHON must name the interpreter of an environment with monailabel, see docs/SLICER.md"
        )
    folder = tmp_path_factory.mktemp("monai_label")
    studies = folder / "studies"
    studies.mkdir()
    app = Path(python).parents[1] / "monailabel" / "sample-apps" / "monaibundle"
    shutil.copytree(app, folder / "monaibundle", ignore=shutil.ignore_patterns("model", "logs", "__pycache__"))
    lay_out(str(folder / "monaibundle"), SERVED)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    conf = {"models": ",".join(SERVED), "zoo_source": "none", "sam2": "false"}
    command = [python, "-m", "monailabel.main", "start_server", "--app", str(folder / "monaibundle")]
    command += ["--studies", str(studies), "--host", "127.0.0.1", "--port", str(port)]
    command += [part for key, value in conf.items() for part in ("--conf", key, value)]
    with (folder / "server.log").open("w") as log:
        variables = environment(OMP_NUM_THREADS="1", MONAI_LABEL_DATASTORE_AUTO_RELOAD="false")
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=variables, cwd=folder)
    try:
        answers = Server(port, studies, folder / "monaibundle")
        until = time.monotonic() + PATIENCE
        while True:
            assert process.poll() is None and time.monotonic() < until, (folder / "server.log").read_text()[-5000:]
            try:
                answers.json("GET", "/info/")
                break
            except OSError:
                time.sleep(1)
        yield answers
    finally:
        process.terminate()
        process.wait(60)


@pytest.mark.slow
def test_the_server_gives_what_inference_json_gives(server, real_data, tmp_path):
    offered = server.json("GET", "/info/")["models"]
    assert set(offered) == set(SERVED) and {one["type"] for one in offered.values()} == {"segmentation"}
    assert offered["brats_seg"]["labels"] == {"necrotic core": 1, "oedema": 2, "enhancing tumour": 4}
    assert offered["kits23_seg"]["labels"] == {"kidney": 1, "tumour": 2, "cyst": 3}
    found = {}
    for bundle in SERVED:
        made = tmp_path / bundle
        made.mkdir()
        scans = {"phantom": phantom_scan(bundle, made), "real": real_scan(bundle, real_data(REAL[bundle]), made)}
        for kind, scan in scans.items():
            name = f"{bundle}_{kind}"
            server.upload("image", f"image={name}", scan)
            answer = server.infer(bundle, name, tmp_path)
            ours = segment(scan, bundle=str(BUNDLES / bundle), device="cpu", previews=False).labels
            np.testing.assert_array_equal(np.asarray(answer.dataobj), np.asarray(ours.dataobj), err_msg=name)
            np.testing.assert_allclose(answer.affine, ours.affine, atol=1e-4)
            found[name] = int((np.asarray(ours.dataobj) > 0).sum())
        segment.forget()
    assert min(found.values()) > 0, found


@pytest.mark.slow
def test_a_round_of_active_learning(server, tmp_path):
    """Infer, correct, submit, train an epoch, infer again: the server serves what it has trained."""
    images = sorted((phantom.write(tmp_path / "phantom", "hippocampus", cases=2) / "imagesTr").iterdir())
    weights = server.app / "model" / "msd_seg" / "models" / "model.pt"
    before = weights.read_bytes()
    for image in images:
        server.upload("image", f"image=round_{image.name.removesuffix('.nii.gz')}", image)
    for image in images:
        name = f"round_{image.name.removesuffix('.nii.gz')}"
        found = server.infer("msd_seg", name, tmp_path)
        corrected = np.asarray(found.dataobj).copy()
        corrected[:, : corrected.shape[1] // 2] = 0
        label = tmp_path / f"{name}.nii.gz"
        nib.save(nib.Nifti1Image(corrected, found.affine), label)
        server.upload("label", f"image={name}&tag=final", label)
    server.json("POST", "/train/msd_seg?run_sync=true", {"max_epochs": 1, "val_split": 0.5, "device": "cpu"})
    assert weights.read_bytes() != before and (weights.parent / "model_before_1.pt").read_bytes() == before
    answer = server.infer("msd_seg", name, tmp_path)
    options = {"checkpoint": str(weights), "device": "cpu", "previews": False}
    ours = segment(images[-1], bundle=str(BUNDLES / "msd_seg"), **options).labels
    np.testing.assert_array_equal(np.asarray(answer.dataobj), np.asarray(ours.dataobj))
    segment.forget()
