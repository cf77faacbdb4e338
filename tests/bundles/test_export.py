"""The shipped network leaves its bundle through the command line as TorchScript and as ONNX, and computes the same."""

import json

import onnxruntime
import processes
import pytest
import torch
from helpers import BUNDLES, environment
from torch.testing import assert_close

from mambamim_nets import HyMambaSeg

BUNDLE = BUNDLES / "msd_seg"
WEIGHTS = BUNDLE / "models" / "model.pt"
SHAPE = (1, 1, 32, 48, 32)

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def eager():
    state = torch.load(WEIGHTS, weights_only=True)
    network = HyMambaSeg(1, len(state["out.bias"]), size="tiny")
    network.load_state_dict(state)
    return network.eval()


def export(verb, path, *options):
    """Run an export verb of monai.bundle from outside the bundle."""
    files = ("--ckpt_file", WEIGHTS, "--meta_file", BUNDLE / "configs/metadata.json")
    files = (*files, "--config_file", BUNDLE / "configs/inference.json", "--filepath", path)
    line = ["-m", "monai.bundle", verb, "--net_id", "network_def", *map(str, files), *options]
    (done,) = processes.run(line, cwd=path.parent, variables=[environment()])
    assert done.returncode == 0, (done.stdout + done.stderr)[-6000:]


def image(shape=SHAPE):
    return torch.rand(shape, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def test_ckpt_export_by_scripting_runs_on_other_shapes(eager, tmp_path):
    export("ckpt_export", tmp_path / "model.ts")
    kept = {"inference.json": "", "metadata.json": ""}
    scripted = torch.jit.load(tmp_path / "model.ts", _extra_files=kept)
    for shape in (SHAPE, (2, 1, 48, 16, 32)):
        assert_close(scripted(image(shape)), eager(image(shape)), atol=1e-4, rtol=0)
    assert json.loads(kept["inference.json"]) == json.loads((BUNDLE / "configs/inference.json").read_text())
    assert json.loads(kept["metadata.json"])["version"]


@torch.no_grad()
def test_ckpt_export_by_tracing(eager, tmp_path):
    export("ckpt_export", tmp_path / "model.ts", "--use_trace", "true", "--input_shape", str(list(SHAPE)))
    assert_close(torch.jit.load(tmp_path / "model.ts")(image()), eager(image()), atol=1e-4, rtol=0)


@torch.no_grad()
def test_onnx_export(eager, tmp_path):
    export("onnx_export", tmp_path / "model.onnx", "--input_shape", str(list(SHAPE)))
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    (ours,) = session.run(None, {session.get_inputs()[0].name: image().numpy()})
    assert_close(torch.from_numpy(ours), eager(image()), atol=1e-4, rtol=0)
