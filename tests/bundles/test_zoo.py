"""What the MONAI Model Zoo's CI asks of a bundle in its full mode, with MONAI's own verbs, for every bundle.

Written from what model-zoo's CONTRIBUTING.md and ci/verify_bundle.py ask: necessary and preferred files, version and
changelog, metadata schema, input and output of ``network_def``, and its export as TorchScript with the weights.
"""

import json
import shutil
import subprocess
import sys

import processes
import pytest
import torch
from helpers import BUNDLES, REPOSITORY, environment, existing
from monai.bundle import ConfigParser, ckpt_export, verify_metadata, verify_net_in_out

NAMES = [path.parents[1].name for path in existing(BUNDLES.glob("*/configs/metadata.json"))]
LARGEST = 25 * 10**6  # bytes; larger files need large_files.yml

every_bundle = pytest.mark.parametrize("name", NAMES)


def arguments(name: str) -> dict[str, str]:
    """Return what the zoo hands to MONAI's verbs."""
    root = BUNDLES / name
    return {
        "net_id": "network_def",
        "meta_file": str(root / "configs" / "metadata.json"),
        "config_file": str(root / "configs" / "inference.json"),
        "bundle_root": str(root),
    }


def network_of(name: str) -> torch.nn.Module:
    parser = ConfigParser()
    parser.read_config(arguments(name)["config_file"])
    parser["bundle_root"] = arguments(name)["bundle_root"]
    return parser.get_parsed_content("network_def").eval()


def metadata(name: str) -> dict:
    return json.loads((BUNDLES / name / "configs" / "metadata.json").read_text())


def test_files_that_the_zoo_asks_for_are_there():
    wanted = ["LICENSE", "configs/metadata.json", "configs/inference.json", "models/model.pt"]
    wanted += ["docs/README.md", "docs/data_license.txt"]
    assert [f"{name}/{file}" for name in NAMES for file in wanted if not (BUNDLES / name / file).is_file()] == []


def test_no_file_of_a_bundle_is_too_large():
    parts = [BUNDLES / name / part for name in NAMES for part in ("configs", "docs", "models")]
    files = existing(path for part in parts for path in part.rglob("*") if path.is_file())
    assert [str(path) for path in files if path.stat().st_size > LARGEST] == []


def test_metadata_name_the_bundle_and_explain_its_version():
    found = {name: metadata(name) for name in NAMES}
    assert [name for name, held in found.items() if not (held["name"] and held["changelog"].get(held["version"]))] == []


@pytest.mark.filterwarnings("ignore:No hash value provided:UserWarning")  # the schema is a file beside us
def test_metadata_fit_the_schema_of_monai(real_data, tmp_path):
    schema = real_data("../specs/monai/meta_schema_20240725.json")
    copy, wrong = tmp_path / "schema.json", {}  # a file that exists is not downloaded
    copy.write_bytes(schema.read_bytes())
    for name in NAMES:
        try:
            verify_metadata(meta_file=arguments(name)["meta_file"], filepath=str(copy))
        except ValueError as error:
            wrong[name] = str(error)
        if not metadata(name)["schema"].endswith(f"/{schema.name}"):
            wrong[name] = f"names the schema {metadata(name)['schema']}"
    assert wrong == {}


@every_bundle
def test_network_in_and_out_are_as_the_metadata_say(name):
    verify_net_in_out(**arguments(name), device="cpu")  # n = 1, as in the zoo

    # the verb compares channels and type, not the grid
    formats = metadata(name)["network_data_format"]
    image, pred = formats["inputs"]["image"], formats["outputs"]["pred"]
    grids = [[eval(str(side), {}, {"n": 2, "p": 1}) for side in tensor["spatial_shape"]] for tensor in (image, pred)]
    with torch.no_grad():
        out = network_of(name)(torch.rand(1, image["num_channels"], *grids[0]))
    assert list(out.shape) == [1, pred["num_channels"], *grids[1]]


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name == "msd_seg" else [pytest.mark.slow]) for name in NAMES]
)
def test_network_leaves_the_bundle_as_torchscript(name, tmp_path):
    network, weights = network_of(name), BUNDLES / name / "models" / "model.pt"
    if weights.is_file():
        network.load_state_dict(torch.load(weights, weights_only=True))
    else:  # whether they must be there is another test's question
        weights = tmp_path / "model.pt"
        torch.save(network.state_dict(), weights)
    ckpt_export(**arguments(name), filepath=str(tmp_path / "model.ts"), ckpt_file=str(weights))

    channels = metadata(name)["network_data_format"]["inputs"]["image"]["num_channels"]
    image = torch.rand(1, channels, 32, 16, 48, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(torch.jit.load(tmp_path / "model.ts")(image), network(image), atol=1e-4, rtol=0)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["msd_seg", "pretrain", "brain_cls", "fetal_landmarks"])
def test_the_unit_test_for_a_request_runs_in_the_zoo(name, tmp_path):
    left = shutil.ignore_patterns("runs", "phantom", "models")
    shutil.copytree(BUNDLES / name, tmp_path / "models" / name, ignore=left)
    tests = tmp_path / "ci" / "unit_tests"
    subprocess.run([sys.executable, str(REPOSITORY / ".ci" / "zoo_tests.py"), str(tests)], check=True)
    assert {path.stem for path in tests.glob("test_*.py")} == {f"test_{bundle}" for bundle in NAMES}
    (done,) = processes.run([str(tests / f"test_{name}.py")], cwd=tmp_path, variables=[environment()])
    assert done.returncode == 0 and "Ran 1 test" in done.stderr, (done.stdout + done.stderr)[-3000:]
