"""What is not finite, and what fails in one scan of several: refused by name, and the others are done."""

import json
import logging
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from mambamim_nets import HyMamba, HyMambaSeg, NNMambaClassifier, NNMambaSeg, phantom
from mambamim_nets.bundle.handlers.training import ClipGradients, StopOnNan
from mambamim_nets.bundle.inference import inferers
from mambamim_nets.bundle.transforms.labels import RestoreLabelsd
from mambamim_nets.checkpoint import load_encoder, load_weights, non_finite

SHAPE = (40, 36, 33)
AFFINE = np.diag([1.0, 1.0, 1.0, 1.0])
ZSCORE = {"_target_": "NormalizeIntensityd", "keys": "image", "nonzero": True, "channel_wise": True}


def scan(path: Path, factor: float = 1.0, dtype: str = "float32") -> Path:
    values = np.random.default_rng(0).random(SHAPE) * 100 * factor
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(values.astype(dtype), AFFINE), path)
    return path


def network() -> HyMambaSeg:
    torch.manual_seed(0)
    return HyMambaSeg(1, 3, size="tiny")


def spoilt(state: dict[str, torch.Tensor], value: float, key: str = "") -> dict[str, torch.Tensor]:
    """Put a value into the last tensor of a state dict, or the first whose key ends so."""
    found = next((name for name in state if key and name.endswith(key)), list(state)[-1])
    state[found] = state[found].clone()
    state[found].view(-1)[0] = value
    return state


@pytest.fixture
def weights(tmp_path):
    """Return a function that saves weights of the hippocampus task with one value replaced."""

    def save(value: float = 0.0, key: str = "") -> str:
        torch.save(spoilt(network().state_dict(), value, key), tmp_path / "weights.pt")
        return str(tmp_path / "weights.pt")

    return save


@pytest.fixture
def two_scans(tmp_path):
    scan(tmp_path / "scans" / "a.nii.gz")
    scan(tmp_path / "scans" / "b.nii.gz")
    return tmp_path / "scans"


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return phantom.write(tmp_path_factory.mktemp("data") / "hippocampus", "hippocampus", cases=5)


@pytest.fixture
def own(data, tmp_path):
    """A copy of the data set, to be broken, and its cases."""
    folder = Path(shutil.copytree(data, tmp_path / "own"))
    cases = json.loads((folder / "dataset.json").read_text())["training"]
    return folder, [{key: folder / case[key] for key in ("image", "label")} for case in cases]


def rewrite(path: Path, change) -> None:
    image = nib.load(path)
    nib.save(nib.Nifti1Image(change(np.asarray(image.dataobj)), image.affine), path)


def done(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("*.nii.gz"))


# --- weights --------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_are_finite_in_every_loader(tmp_path, value):
    for load, net in ((load_weights, network()), (load_encoder, HyMamba(1, size="tiny"))):
        key = next(iter(net.state_dict()))
        torch.save(spoilt(net.state_dict(), value, key), tmp_path / "weights.pt")
        with pytest.raises(
            ValueError, match=rf"weights\.pt must be finite, but {key} has 1 of \d+ values NaN or infinite;"
        ):
            load(net, tmp_path / "weights.pt")
        assert not non_finite(net.state_dict()), "the network is as it was"


@pytest.mark.parametrize(("fault", "value"), [("weights with NaN", np.nan), ("weights with infinity", -np.inf)])
def test_weights_that_are_not_finite_in_inference(fault, value, weights, two_scans, bundle_run, reliability, tmp_path):
    end = bundle_run("msd_seg", "inference", input=str(two_scans), checkpoint=weights(value))
    assert not done(tmp_path / "out")
    reliability("Weights", f"{fault} in inference", end)


def test_weights_that_are_not_finite_in_evaluation(weights, data, bundle_run, reliability, tmp_path):
    end = bundle_run("msd_seg", ["train", "evaluate"], dataset_dir=str(data), checkpoint=weights(np.nan))
    assert not list(tmp_path.rglob("*.csv"))
    reliability("Weights", "weights with NaN in evaluation", end)


def test_an_encoder_that_is_not_finite(data, bundle_run, reliability, tmp_path):
    torch.save(spoilt(HyMamba(1, size="tiny").state_dict(), np.nan), tmp_path / "encoder.pt")
    pretrained = str(tmp_path / "encoder.pt")
    end = bundle_run("msd_seg", dataset_dir=str(data), pretrained=pretrained, max_epochs=1)
    reliability("Weights", "a pre-trained encoder with NaN", end)


@pytest.mark.parametrize(
    ("bundle", "net"),
    [("brain_cls", lambda: NNMambaClassifier(1, 1, width=4)), ("fetal_landmarks", lambda: NNMambaSeg(1, 2, width=8))],
    ids=["brain_cls", "fetal_landmarks"],
)
def test_weights_of_other_tasks_that_are_not_finite(bundle, net, two_scans, bundle_run, reliability, tmp_path):
    torch.save(spoilt(net().state_dict(), np.nan, ".weight"), tmp_path / "weights.pt")
    threshold = {"threshold": 0.5} if bundle == "brain_cls" else {}
    checkpoint = str(tmp_path / "weights.pt")
    end = bundle_run(bundle, "inference", input=str(two_scans), checkpoint=checkpoint, **threshold)
    reliability("Weights", f"weights of {bundle} with NaN", end)


# --- results of the network -----------------------------------------------------------------------


@pytest.mark.parametrize(("amp", "words"), [(False, "in float32"), (True, "in bfloat16")], ids=["float32", "bfloat16"])
def test_a_network_that_overflows(amp, words, weights, two_scans, bundle_run, reliability, tmp_path):
    """Weights may be finite and their products not."""
    checkpoint = weights(3e38, "out.weight")
    window = {"roi_size": [32, 16, 16], "sw_batch_size": 1}  # small: some CPUs emulate bfloat16
    end = bundle_run("msd_seg", "inference", input=str(two_scans), checkpoint=checkpoint, amp=amp, **window)
    assert not done(tmp_path / "out")
    assert "2 of 2 scans failed" in end.log and words in end.last and ("--amp false" in end.last) == amp
    reliability("Inference", f"a network whose results overflow {words}", end, hide=r"(\d+ of \d+)|(to [\d.]+(?=:))")


def test_a_network_that_overflows_in_evaluation(weights, data, bundle_run, reliability, tmp_path):
    options = {"dataset_dir": str(data), "amp": False}  # whether it is on by default depends on the CPU
    end = bundle_run("msd_seg", ["train", "evaluate"], checkpoint=weights(3e38, "out.weight"), **options)
    assert end.last.startswith("case ") and not list(tmp_path.rglob("metrics*.csv"))
    reliability("Inference", "a network whose results overflow in evaluation", end, hide=r"\d+ of \d+")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("mirror", [[], [0]])
def test_one_value_among_all_windows_is_enough(value, mirror):
    class Bad(torch.nn.Module):
        def forward(self, windows):
            out = windows.repeat(1, 2, 1, 1, 1)
            if windows.max() > 5:
                out[0, 1, 0, 0, 0] = value
            return out

    from monai.inferers import SlidingWindowInferer

    inferer = inferers.AutocastInferer(SlidingWindowInferer((8, 8, 8), 2, 0.25), mirror_axes=mirror)
    image = torch.rand(1, 1, 20, 20, 20)
    with torch.no_grad():
        assert inferer(image, Bad()).isfinite().all()
        image[0, 0, 10, 10, 10] = 6
        with pytest.raises(
            FloatingPointError, match=r"\d of \d+ results of the network are NaN or infinite in float32"
        ):
            inferer(image, Bad())


def test_largest_finite_results_are_let_through():
    """A sum would overflow where no value does."""
    image = torch.full((1, 1, 4, 4, 4), torch.finfo(torch.float32).max)
    from monai.inferers import SimpleInferer

    with torch.no_grad():
        assert inferers.AutocastInferer(SimpleInferer())(image, torch.nn.Identity()).isfinite().all()


# --- one scan of several fails --------------------------------------------------------------------


def failing(monkeypatch, owner, method: str, error: Exception, once: bool = True) -> None:
    """Let a method fail at its first call."""
    original, calls = getattr(owner, method), []

    def call(self, *args, **kwargs):
        calls.append(1)
        if len(calls) == 1 or not once:
            raise error
        return original(self, *args, **kwargs)

    monkeypatch.setattr(owner, method, call)


FAILURES = {
    "memory that runs out in the network": (
        inferers._Windows,
        "__call__",
        RuntimeError(
            "[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory: you tried to allocate"
            " 64000000000 bytes."
        ),
    ),
    "memory that runs out in the postprocessing": (RestoreLabelsd, "__call__", MemoryError()),
    "an error inside the network": (inferers._Windows, "__call__", KeyError("block")),
}


@pytest.mark.parametrize("fault", FAILURES)
def test_a_failure_ends_one_scan_and_not_the_run(fault, monkeypatch, two_scans, bundle_run, reliability, tmp_path):
    failing(monkeypatch, *FAILURES[fault])
    end = bundle_run("msd_seg", "inference", input=str(two_scans), previews=False)
    assert done(tmp_path / "out") == ["b_seg.nii.gz"]
    assert "1 of 2 scans done" in end.log and "1 of 2 scans failed" in end.log
    reliability("Inference", fault, end)


def test_an_interrupt_is_no_failure_of_a_scan(monkeypatch, two_scans, bundle_run, tmp_path):
    failing(monkeypatch, inferers._Windows, "__call__", KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        bundle_run("msd_seg", "inference", input=str(two_scans), previews=False)
    assert not done(tmp_path / "out")


def test_intensities_that_overflow_in_the_preprocessing(two_scans, bundle_run, reliability, tmp_path):
    scan(two_scans / "a.nii.gz", factor=1e35)
    end = bundle_run(
        "msd_seg",
        "inference",
        input=str(two_scans),
        intensity=ZSCORE,
        checkpoint=weights_of(tmp_path),
        previews=False,
    )
    assert done(tmp_path / "out") == ["b_seg.nii.gz"]
    reliability("Images", "intensities whose deviation is beyond float32", end)


def weights_of(folder: Path) -> str:
    torch.save(network().state_dict(), folder / "own.pt")
    return str(folder / "own.pt")


def test_a_failure_in_evaluation_is_named(monkeypatch, data, bundle_run, reliability, tmp_path):
    failing(monkeypatch, RestoreLabelsd, "__call__", MemoryError())
    end = bundle_run("msd_seg", ["train", "evaluate"], dataset_dir=str(data), checkpoint=weights_of(tmp_path))
    assert end.last.startswith("case ") and not list(tmp_path.rglob("metrics*.csv"))
    reliability("Inference", "memory that runs out in evaluation", end)


# --- training -------------------------------------------------------------------------------------


def no_training(end, folder: Path) -> bool:
    return not list(folder.rglob("*.pt")) and "Epoch[1]" not in end.log


def test_values_beyond_float32_in_training(own, bundle_run, reliability, tmp_path):
    folder, cases = own
    rewrite(cases[0]["image"], lambda values: values.astype("float64") * 1e39)
    end = bundle_run("msd_seg", dataset_dir=str(folder), max_epochs=1)
    assert no_training(end, tmp_path / "out")
    reliability("Images", "values beyond float32 in training", end)


@pytest.mark.parametrize("cache_rate", [1.0, 0.0])
def test_intensities_that_overflow_in_training(cache_rate, own, bundle_run, tmp_path):
    folder, cases = own
    for case in cases:
        rewrite(case["image"], lambda values: values.astype("float32") * 1e33)
    options = {"intensity": ZSCORE, "cache_rate": cache_rate, "max_epochs": 1}
    end = bundle_run("msd_seg", dataset_dir=str(folder), **options)
    assert end.status and "NaN or infinite after preprocessing" in end.last and no_training(end, tmp_path / "out")


@pytest.mark.slow
def test_weights_that_become_infinite_are_not_saved(monkeypatch, data, bundle_run, reliability, tmp_path):
    """The loss is finite in every step, and the last step of the second epoch spoils the weights."""

    bundle_run("msd_seg", dataset_dir=str(data), max_epochs=1, val_interval=1)
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").glob("*.pt")}
    assert set(before) == {"checkpoint_last.pt", "model_best.pt"}
    original = ClipGradients.__call__

    def spoil(self, engine):
        original(self, engine)
        next(iter(self.network.parameters())).grad.fill_(float("inf"))

    monkeypatch.setattr(ClipGradients, "__call__", spoil)
    monkeypatch.setattr(StopOnNan, "__call__", lambda self, engine: None)
    end = bundle_run("msd_seg", dataset_dir=str(data), max_epochs=2, val_interval=5)
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").glob("*.pt")} == before
    reliability("Training runs", "weights that become NaN in the last step of an epoch", end)


@pytest.mark.slow
def test_a_checkpoint_that_is_not_finite_is_not_resumed(data, bundle_run, reliability, tmp_path):
    bundle_run("msd_seg", dataset_dir=str(data), max_epochs=1)
    file = tmp_path / "out" / "checkpoint_last.pt"
    state = torch.load(file, weights_only=True)
    spoilt(state["model"], np.nan)
    torch.save(state, file)
    end = bundle_run("msd_seg", dataset_dir=str(data), max_epochs=2)
    assert "values NaN or infinite" in end.last
    reliability("Weights", "a checkpoint with NaN that is to be resumed", end)


# --- pre-training ---------------------------------------------------------------------------------


def test_images_that_are_left_out_of_pretraining(own, bundle_run, reliability, tmp_path, caplog):
    folder, cases = own
    rewrite(cases[0]["image"], lambda values: values.astype("float64") * 1e39)
    rewrite(cases[1]["image"], lambda values: np.where(values > values.mean(), np.nan, values).astype("float32"))
    with caplog.at_level(logging.WARNING):
        end = bundle_run("pretrain", sources=[str(folder)], max_epochs=1)
    assert (tmp_path / "out" / "encoder.pt").is_file()
    assert "2 of 7 images left out" in end.log
    reliability("Pre-training", "an image beyond float32", end, warning="values up to", hide=r"e\+\d+(?=:)|\d\.\d+e")
    reliability("Pre-training", "an image with NaN", end, warning="voxels are NaN or infinite", hide=r"\d+(?= of)")
