"""Mirroring, autocast, inference mode and windows of air, on networks small enough to compute by hand."""

import json
import logging
from pathlib import Path

import pytest
import torch
from helpers import BUNDLES
from monai.bundle import ConfigParser
from monai.data import MetaTensor
from monai.data.utils import dense_patch_slices
from monai.inferers import SimpleInferer, SlidingWindowInferer
from monai.networks import trt_compile, trt_compiler
from torch import nn

from mambamim_nets import HyMamba
from mambamim_nets.bundle.inference import inferers
from mambamim_nets.bundle.inference.inferers import AutocastInferer, EnsembleInferer, bfloat16_is_fast, tensorrt
from mambamim_nets.bundle.labels import Targets

SOFTMAX = Targets({"liver": 1, "spleen": 2})
REGIONS = Targets({"core": 1, "rim": 2}, {"whole": [1, 2], "core": [1]})

# --- mirroring ------------------------------------------------------------------------------------


@pytest.fixture
def convolution():
    torch.manual_seed(0)
    return nn.Conv3d(2, 3, 3, padding=1)


@pytest.mark.parametrize(
    ("axes", "flips"),
    [
        ([], [()]),
        ([0], [(), (2,)]),
        ([2, 1], [(), (3,), (4,), (3, 4)]),
        ((0, 1, 2), [(), (2,), (3,), (4,), (2, 3), (2, 4), (3, 4), (2, 3, 4)]),
        ([1, 1], [(), (3,)]),
    ],
    ids=str,
)
@pytest.mark.parametrize(
    "inner", [SimpleInferer(), SlidingWindowInferer((4, 4, 4), 3, 0.5, "gaussian")], ids=["simple", "sliding"]
)
def test_mirroring_is_the_mean_over_all_flips(convolution, axes, flips, inner):
    image = torch.randn(2, 2, 5, 6, 7)
    before = image.clone()
    with torch.no_grad():
        parts = [inner(image.flip(flip), convolution).flip(flip) for flip in flips]
        out = AutocastInferer(inner, mirror_axes=axes)(MetaTensor(image), convolution)
    assert len(parts) == 2 ** len(set(axes))
    torch.testing.assert_close(torch.as_tensor(out), torch.stack(parts).mean(0), rtol=1e-5, atol=1e-6)
    assert torch.equal(image, before)


def test_mirroring_leaves_the_input_of_a_network_that_returns_it():
    image = torch.randn(1, 1, 2, 3, 4)
    before = image.clone()
    out = AutocastInferer(SimpleInferer(), mirror_axes=[0, 2])(image, nn.Identity())
    assert torch.equal(image, before)
    torch.testing.assert_close(out, before)


@pytest.mark.parametrize("axes", [[3], [-1], [0, 1, 2, 3]], ids=str)
def test_an_axis_that_does_not_exist(axes):
    with pytest.raises(ValueError, match=r"mirror_axes .* must be among 0, 1 and 2"):
        AutocastInferer(SimpleInferer(), mirror_axes=axes)


def test_autocast_computes_in_bfloat16_and_returns_float32(convolution):
    image = torch.randn(1, 2, 4, 4, 4)
    with torch.no_grad():
        exact = AutocastInferer(SimpleInferer(), amp=False)(image, convolution)
        rounded = AutocastInferer(SimpleInferer(), amp=True)(image, convolution)
    assert exact.dtype == rounded.dtype == torch.float32
    assert torch.equal(rounded, rounded.bfloat16().float()) and not torch.equal(exact, rounded)
    torch.testing.assert_close(exact, rounded, rtol=0.05, atol=0.05)


def test_bfloat16_is_asked_of_the_device(monkeypatch):
    assert bfloat16_is_fast("cpu") is bfloat16_is_fast(torch.device("cpu"))
    assert not bfloat16_is_fast("meta")
    for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"):
        monkeypatch.delattr(torch.cpu, name, raising=False)
    assert not bfloat16_is_fast("cpu"), "a torch that cannot tell"
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: True, raising=False)
    assert bfloat16_is_fast("cpu")
    for capability, fast in (((7, 5), False), ((8, 0), True), ((9, 0), True)):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device, found=capability: found)
        assert bfloat16_is_fast("cuda:0") is fast


# --- inference mode -------------------------------------------------------------------------------


def test_a_network_runs_in_inference_mode_and_ordinary_tensors_leave_it(convolution):
    seen = []

    def network(windows):
        seen.append(torch.is_inference_mode_enabled())
        return convolution(windows)

    with torch.no_grad():
        out = AutocastInferer(SlidingWindowInferer((4, 4, 4), 2))(torch.randn(1, 2, 6, 4, 4), network)
    assert all(seen) and not out.is_inference()
    image = torch.randn(1, 2, 4, 4, 4)
    AutocastInferer(SimpleInferer())(image, network).sum().backward()
    assert not seen[-1] and convolution.weight.grad is not None, "training goes on after it"


# --- windows of air -------------------------------------------------------------------------------


class Against(nn.Module):
    """Speaks against background as loudly as a network may, and notes its windows."""

    def __init__(self, channels):
        super().__init__()
        self.channels, self.windows = channels, []

    def forward(self, windows):
        self.windows += list(windows.clone())
        logits = torch.full((len(windows), self.channels, *windows.shape[2:]), 10_000.0)
        logits[:, 0] = -10_000.0 if self.channels == 3 else 10_000.0
        return logits + torch.rand(1)


def places(shape, roi=8, overlap=0.75):
    return dense_patch_slices(shape, (roi,) * 3, (int(roi * (1 - overlap)),) * 3)


@pytest.mark.parametrize("targets", [SOFTMAX, REGIONS], ids=["classes", "regions"])
@pytest.mark.parametrize("mirror_axes", [(), (0, 2)], ids=["plain", "mirrored"])
def test_every_voxel_of_a_window_of_air_is_background(targets, mirror_axes, caplog):
    image = torch.zeros(1, 1, 24, 16, 16)
    image[0, 0, 13, 9, 5] = 1e-6
    network, inner = Against(targets.out_channels), SlidingWindowInferer((8, 8, 8), 5, 0.75, "gaussian")
    inferer = AutocastInferer(inner, False, mirror_axes, targets.background, report=True)
    with torch.no_grad(), caplog.at_level(logging.INFO, "mambamim_nets"):
        out = inferer(MetaTensor(image), network)
    assert isinstance(out, MetaTensor) and out.dtype == torch.float32 and out.isfinite().all()
    probabilities = targets.probabilities(out[0].as_tensor())
    found = targets.label_map(probabilities)[0] > 0
    air = torch.zeros_like(found)
    slices = places((24, 16, 16))
    empty = [place for place in slices if not (image[0, 0][place] > 0).any()]
    for place in empty:
        air[place] = True
    assert not found[air].any() and found[~air].all() and found.any()
    exact = torch.zeros(targets.out_channels) if targets.regions else torch.eye(3)[0]
    assert (probabilities[:, air] == exact[:, None]).all(), "interpolated, these stay background"
    flips = 2 ** len(mirror_axes)
    assert all((window > 0).any() for window in network.windows)
    assert len(network.windows) == flips * (len(slices) - len(empty)) < flips * len(slices)
    assert f"{len(network.windows)} windows, {flips * len(empty)} of air skipped" in caplog.text


def test_nothing_but_air_needs_no_network():
    def network(windows):
        raise AssertionError

    inner = SlidingWindowInferer((8, 8, 8), 4, 0.5, "gaussian")
    out = AutocastInferer(inner, air=SOFTMAX.background)(torch.zeros(1, 2, 12, 9, 5), network)
    assert out.shape == (1, 3, 12, 9, 5) and (out.argmax(1) == 0).all()


@pytest.mark.parametrize(
    ("value", "air"), [(1.0, None), (float("nan"), SOFTMAX.background), (1e-30, SOFTMAX.background)], ids=str
)
def test_a_window_with_anything_in_it_is_computed(value, air):
    image, network = torch.zeros(1, 2, 8, 8, 8), Against(3)
    image[0, 1, 0, 7, 3] = value
    AutocastInferer(SlidingWindowInferer((8, 8, 8), 4), air=air)(image, network)
    assert len(network.windows) == 1


def test_without_air_given_every_window_is_computed():
    network = Against(3)
    AutocastInferer(SlidingWindowInferer((8, 8, 8), 4, 0.5))(torch.zeros(1, 1, 16, 8, 8), network)
    assert len(network.windows) == 3


def test_on_a_real_ct_only_windows_of_air_change(real_data):
    ct = str(real_data("totalsegmentator/ct_abdomen_3mm/image.nii.gz"))
    parser = ConfigParser()
    parser.read_config(str(BUNDLES / "btcv_seg/configs/inference.json"))
    parser.update({"input": ct, "roi_size": [16, 16, 16], "amp": False, "device": "$torch.device('cpu')"})
    parser["bundle_root"] = str(BUNDLES / "btcv_seg")
    image = parser.get_parsed_content("preprocessing")({"image": ct})["image"][None]
    torch.manual_seed(0)
    convolution = nn.Conv3d(1, 14, 3, padding=1)
    with torch.no_grad():
        inner = parser.get_parsed_content("autocast_inferer")
        inner.report = False
        skipping = inner(image, convolution)[0].as_tensor().argmax(0)
        inner.air = None
        everything = inner(image, convolution)[0].as_tensor().argmax(0)
    air = torch.zeros_like(everything, dtype=torch.bool)
    slices = dense_patch_slices(image.shape[2:], (16, 16, 16), (8, 8, 8))
    for place in slices:
        if not (image[0, 0][place] > 0).any():
            air[place] = True
    assert 0 < air.float().mean() < 1
    assert (skipping[air] == 0).all() and (everything[air] != 0).any()
    assert torch.equal(skipping[~air], everything[~air])


# --- TensorRT -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["btcv_seg", "amos_seg", "brats_seg", "msd_seg"])
def test_tensorrt_parses_with_inference_and_is_refused_without_a_gpu(name):
    files = [str(BUNDLES / name / "configs" / f"{part}.json") for part in ("inference", "inference_trt")]
    parser = ConfigParser()
    parser.read_config(files)
    parser.update({"bundle_root": str(BUNDLES / name), "device": "$torch.device('cpu')"})
    assert set(json.loads(Path(files[1]).read_text())) <= {*json.loads(Path(files[0]).read_text()), "trt_args"}
    assert parser.get_parsed_content("inferer").sw_batch_size == 1, "the engine takes one window"
    with pytest.raises(RuntimeError) as caught:
        parser.get_parsed_content("network")
    assert "needs an NVIDIA GPU and the packages tensorrt and polygraphy; device is cpu" in str(caught.value.__cause__)


def test_tensorrt_hands_over_what_monai_takes(monkeypatch, tmp_path):
    import inspect

    checkpoint = tmp_path / "model.pt"
    checkpoint.write_bytes(b"")
    handed = {}
    names = set(inspect.signature(trt_compile).parameters)
    monkeypatch.setattr(inferers, "trt_imported", True)
    monkeypatch.setattr(inferers, "polygraphy_imported", True)
    monkeypatch.setattr(inferers, "trt_compile", lambda model, base_path, args: handed.update(path=base_path, **args))
    network = nn.Identity()
    inferers.tensorrt(network, str(checkpoint), [96, 64, 32], torch.device("cuda"), {"precision": "bf16"})
    assert {"model", "base_path", "args"} <= names
    assert handed.pop("path") == f"{checkpoint}.96x64x32"
    assert set(handed) <= set(inspect.signature(trt_compiler.TrtCompiler.__init__).parameters)
    assert handed == {"precision": "bf16", "timestamp": int(checkpoint.stat().st_mtime)}


@pytest.mark.parametrize(
    ("depth", "hybrid", "dtype"),
    [
        (16, True, torch.float32),
        (32, True, torch.bfloat16),
        (32, False, torch.float32),
        (64, False, torch.float32),
        (48, False, torch.bfloat16),
    ],
)
def test_crops_whose_bfloat16_gradients_are_wrong_are_trained_in_float32(depth, hybrid, dtype, caplog):
    network = nn.Conv3d(1, 2, 3, padding=1)
    if hybrid:  # tokens from stride 16 on
        network.add_module("encoder", HyMamba(size="tiny"))
    seen = []
    network.register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
    inferer = AutocastInferer(SimpleInferer(), amp=True)
    for _ in range(2):
        inferer(torch.rand(1, 1, depth, 16, 16), network)
    with torch.no_grad():
        inferer(torch.rand(1, 1, depth, 16, 16), network)
    assert seen == [dtype, dtype, torch.bfloat16]
    assert caplog.text.count("trained in float32") == int(dtype == torch.float32)


# --- ensembles ------------------------------------------------------------------------------------


def member(path: Path, seed: int, channels: int) -> nn.Conv3d:
    """Write the weights of a convolution with random weights, and return it."""
    torch.manual_seed(seed)
    network = nn.Conv3d(2, channels, 3, padding=1)
    network.weight.data.mul_(5)
    torch.save(network.state_dict(), path)
    return network


@pytest.mark.parametrize("targets", [SOFTMAX, REGIONS], ids=["classes", "regions"])
@pytest.mark.parametrize("axes", [[], [0]], ids=["plain", "mirrored"])
def test_an_ensemble_has_the_mean_of_its_members_probabilities(tmp_path, targets, axes):
    files = [str(tmp_path / f"fold{number}.pt") for number in range(3)]
    members = [member(Path(file), seed, targets.out_channels) for seed, file in enumerate(files)]
    inner = AutocastInferer(SlidingWindowInferer((4, 4, 4), 3, 0.5, "gaussian"), mirror_axes=axes)
    image, network = torch.randn(2, 2, 5, 6, 7), nn.Conv3d(2, targets.out_channels, 3, padding=1)
    with torch.no_grad():
        expected = sum(torch.stack([targets.probabilities(one) for one in inner(image, net)]) for net in members) / 3
        ensemble = EnsembleInferer(inner, targets, files)
        found = [ensemble(image, network) for _ in range(2)]  # the second time every member is in memory
    for out in found:
        probabilities = torch.stack([targets.probabilities(one) for one in out])
        torch.testing.assert_close(probabilities, expected, rtol=1e-4, atol=2e-6)
        assert torch.isfinite(out).all()
    assert torch.equal(found[0], found[1])


def test_what_members_are_certain_of_stays_certain(tmp_path):
    files = [str(tmp_path / f"fold{number}.pt") for number in range(2)]
    for seed, file in enumerate(files):
        member(Path(file), seed, SOFTMAX.out_channels)
    inner = AutocastInferer(SimpleInferer(), air=SOFTMAX.background)
    with torch.no_grad():
        out = EnsembleInferer(inner, SOFTMAX, files)(torch.zeros(1, 2, 4, 4, 4), nn.Conv3d(2, 3, 3, padding=1))
    expected = torch.tensor([1.0, 0.0, 0.0]).view(3, 1, 1, 1).expand(3, 4, 4, 4)
    torch.testing.assert_close(SOFTMAX.probabilities(out[0]), expected, rtol=0, atol=1e-30)


@pytest.mark.parametrize("as_list", [False, True], ids=["file", "list of one"])
def test_one_file_gives_what_its_network_gives(tmp_path, convolution, as_list):
    inner = AutocastInferer(SimpleInferer())
    file = str(tmp_path / "is not read.pt")
    image = torch.randn(1, 2, 5, 6, 7)
    with torch.no_grad():
        found = EnsembleInferer(inner, SOFTMAX, [file] if as_list else file)(image, convolution)
        assert torch.equal(found, inner(image, convolution))


def test_an_engine_takes_one_file(convolution):
    with pytest.raises(ValueError, match=r"inference_trt\.json takes one file of weights, not 2"):
        tensorrt(convolution, ["a.pt", "b.pt"], [4, 4, 4], "cpu", {})
