"""The repository as a whole: who imports whom, names, shared files of the bundles, what may be in git."""

import ast
import json
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator, Set
from pathlib import Path
from typing import NamedTuple

import pytest
from helpers import REPOSITORY, existing

PACKAGE = REPOSITORY / "mambamim_nets"
MODULES = existing(PACKAGE.rglob("*.py"))
BUNDLES = [path.parent for path in existing((REPOSITORY / "bundles").glob("*/configs"))]
# folders of tests that are not of one module: the bundles as they are run, and speed
OTHER_TESTS = {"bundles", "benchmarks"}
# what else has no module of its name: pages, the repository, everything at once, and the kernels of both operators
OF_NO_MODULE = {
    *("test_contributing", "test_fuzz", "test_gpu_check", "test_pages", "test_reliability", "test_repository"),
    *("test_tutorial", "ops/test_fused"),
}
# implementations of one operator are compared with one another, in the test of the operator
OPERATORS = {"ops/recurrence", "ops/interpolation"}
# one line, which torch.compile alone runs: the test of the recurrence compiles it
WITHOUT_TEST = {"ops/uncompiled"}
IMAGES = (".nii", ".nii.gz", ".dcm", ".nrrd", ".mha", ".mhd", ".mgz", ".h5")

TENSORS = frozenset(("torch", "einops", "numpy"))
KERNELS = {"numba", "triton", "mamba_ssm", "causal_conv1d"}
ON_FIRST_USE = {"fused", "uncompiled"}  # modules of ours that load triton and torch._dynamo


class Rule(NamedTuple):
    """What the modules of one room may import: rooms of the package, other packages, and some only inside functions."""

    rooms: Set[str]
    packages: Set[str] = TENSORS
    lazy: Set[str] = frozenset()


NETWORK_ROOMS = {"ops", "masking", "losses", "layers", "nets", "pretraining", "records", "checkpoint"}
MONAI = TENSORS | {"monai"}
# what the modules and rooms of the bundle may import of one another; io, data, ... are rooms, the others single modules
GROUND = {"bundle.files", "bundle.names", "bundle.errors", "bundle.config", "bundle.labels"}
GROUND |= {"bundle.checkpoint_files", "bundle.runtime"}
READ = GROUND | {"bundle.io"}
USE = READ | {"bundle.data", "bundle.transforms", "bundle.weights"}
SHOW = USE | {"bundle.inference", "bundle.metrics", "bundle.visualize"}

# from the bottom up: each may import what stands above it here, as far as it is named
RULES = {
    "ops": Rule({"ops"}, lazy=KERNELS),
    "fused": Rule({"ops"}, TENSORS | {"triton"}),  # ops/<operator>/fused.py
    "masking": Rule({"ops", "masking"}),
    "losses": Rule({"ops", "masking", "losses"}),
    "layers": Rule({"ops", "masking", "layers"}, TENSORS | {"monai.networks.layers"}),
    "nets": Rule({"ops", "masking", "losses", "layers", "nets"}, TENSORS | {"monai.networks"}),
    "pretraining": Rule({"ops", "masking", "losses", "layers", "nets", "pretraining"}, TENSORS | {"monai.networks"}),
    "records": Rule(NETWORK_ROOMS - {"checkpoint"}),
    "checkpoint": Rule(NETWORK_ROOMS),
    "": Rule(NETWORK_ROOMS, lazy={"mambamim_nets.segmentation"}),  # mambamim_nets/__init__.py
    "phantom": Rule({"phantom"}, {"numpy", "scipy", "nibabel"}),
    "bundle.files": Rule(set(), set()),
    "bundle.names": Rule(set(), set()),
    "bundle.errors": Rule({"bundle.files"}, {"monai"}),
    "bundle.config": Rule(set(), MONAI),
    "bundle.metadata": Rule(set(), set()),
    "bundle.labels": Rule(set(), MONAI),
    "bundle.checkpoint_files": Rule({"checkpoint", "bundle.files"}),
    "bundle.runtime": Rule({"layers", "nets", "pretraining", "bundle.config"}, MONAI),
    "bundle.io": Rule(
        {"", *GROUND, "bundle.io"}, MONAI | {"nibabel"}, lazy={"itk", "pydicom", "highdicom", "contourpy", "matplotlib"}
    ),
    "bundle.data": Rule(
        {"", "phantom", *READ, "bundle.data"}, MONAI | {"nibabel", "tqdm"}, lazy={"blosc2", "fsspec", "zarr"}
    ),
    "bundle.transforms": Rule({"masking", *READ, "bundle.transforms"}, MONAI | {"nibabel", "scipy"}),
    "bundle.weights": Rule({"records", "checkpoint", *GROUND, "bundle.transforms"}, MONAI),
    "bundle.inference": Rule(
        {"nets", "pretraining", "checkpoint", "bundle.weights", *USE, "bundle.inference"}, MONAI | {"nibabel", "tqdm"}
    ),
    "bundle.metrics": Rule({*USE, "bundle.metrics"}, MONAI | {"ignite", "scipy"}, lazy={"radiomics", "SimpleITK"}),
    "bundle.visualize": Rule(
        {*USE, "bundle.metrics", "bundle.visualize"}, MONAI | {"nibabel"}, lazy={"contourpy", "matplotlib"}
    ),
    "bundle.handlers": Rule(
        {"", "masking", "checkpoint", *SHOW, "bundle.handlers"},
        MONAI | {"ignite", "nibabel"},
        lazy={"matplotlib", "tensorboard", "PIL"},
    ),
    "bundle.option_kinds": Rule(set()),
    "bundle.options": Rule({"ops", *READ, "bundle.option_kinds"}, MONAI),
    "bundle.overrides": Rule(USE, MONAI),
    "bundle.stops": Rule(GROUND, {"monai"}),
    "bundle.start": Rule(GROUND | {"bundle.options", "bundle.overrides", "bundle.stops"}, {"monai"}),
    "bundle": Rule({"records", *SHOW, "bundle.handlers", "bundle.metadata", "bundle.options", "bundle.start"}, set()),
    # the call from Python: it runs a bundle as monai.bundle does
    "segmentation": Rule(
        {"bundle.files", "bundle.errors", "bundle.handlers", "bundle.weights"}, MONAI | {"nibabel"}, lazy={"PIL"}
    ),
    "command_line": Rule(set(), {"fire"}),
    "prepare": Rule(
        {*READ, "bundle.data", "bundle.transforms", "bundle.option_kinds", "command_line", "prepare"},
        MONAI | {"tqdm"},
    ),
    "convert_dicom": Rule({*READ, "command_line", "convert_dicom"}, {"numpy", "nibabel", "tqdm"}),
    # a driver of commands: it reads data sets and folds by the bundles' own functions, and needs no tensors
    "reproduce": Rule({"command_line", "reproduce"}, {"numpy"}, lazy={"matplotlib", "mambamim_nets.bundle"}),
    "cross_validate": Rule(
        {"checkpoint", *SHOW, "bundle.handlers", "command_line", "reproduce", "cross_validate"},
        MONAI | {"tqdm"},
        lazy={"matplotlib"},
    ),
    "plan": Rule(
        {"", "phantom", *SHOW, "bundle.options", "command_line", "plan"},
        MONAI | {"nibabel", "scipy", "tqdm"},
        lazy={"pydicom"},
    ),
    # commands of one file
    "monai_label": Rule({"checkpoint", *READ, "bundle.metadata", "segmentation", "command_line"}, set()),
    "import_public": Rule(NETWORK_ROOMS | GROUND | {"bundle.weights", "command_line"}),
}


class Import(NamedTuple):
    """One imported module, the line, and whether the statement runs on first use only."""

    module: str
    line: int
    lazy: bool


def imports(node: ast.AST, lazy: bool = False) -> Iterator[Import]:
    """Yield the imports below a node; those in functions and under TYPE_CHECKING are lazy."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            yield from (Import(alias.name, child.lineno, lazy) for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            module = "." * child.level + (child.module or "")
            names = [module]
            if (
                module.split(".")[0] == "mambamim_nets"
            ):  # from mambamim_nets import masking: the module, not the package
                full = [f"{module}.{alias.name}" for alias in child.names]
                names = [name if is_module(name) else module for name in full]
            yield from (Import(name, child.lineno, lazy) for name in names)
        else:
            guarded = isinstance(child, ast.If) and ast.unparse(child.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING")
            yield from imports(child, lazy or guarded or isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef))


def is_module(name: str) -> bool:
    return name.split(".")[-1] in ON_FIRST_USE or name.removeprefix("mambamim_nets.") in RULES


def room(module: str) -> str:
    """Return the first name below mambamim_nets, below bundle the first two; "" for the package itself."""
    names = module.split(".")[1:]
    return ".".join(names[: 2 if names[:1] == ["bundle"] else 1])


def within(module: str, names: Set[str]) -> bool:
    return any(module == name or module.startswith(f"{name}.") for name in names)


def allowed(found: Import, rule: Rule) -> bool:
    module = found.module
    if module.split(".")[0] == "mambamim_nets":
        known = room(module) in rule.rooms or (found.lazy and within(module, rule.lazy))
        return known and (found.lazy or module.split(".")[-1] not in ON_FIRST_USE)
    standard = module.split(".")[0] in sys.stdlib_module_names
    return standard or within(module, rule.packages | (rule.lazy if found.lazy else set()))


def module_id(path: Path) -> str:
    return str(path.relative_to(PACKAGE))


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(REPOSITORY).with_suffix("").parts).removesuffix(".__init__")


def test_rooms_depend_on_one_another_in_one_direction():
    order = {name: position for position, name in enumerate(RULES)}
    upwards = {
        name: sorted(other for other in rule.rooms if order[other] > order[name]) for name, rule in RULES.items()
    }
    assert {name: others for name, others in upwards.items() if others} == {}


def forbidden(path: Path) -> list[str]:
    """Return what a module imports and its room may not, by line."""
    name = "fused" if path.stem == "fused" else room(module_name(path))
    if name not in RULES:
        return ["it is in no known room; add a rule"]
    found = imports(ast.parse(path.read_text(encoding="utf-8")))
    return [f"line {item.line}: {item.module}" for item in found if not allowed(item, RULES[name])]


def test_modules_import_only_what_their_room_may():
    assert {module_id(path): wrong for path in MODULES if (wrong := forbidden(path))} == {}


@pytest.mark.parametrize(
    ("text", "name", "fits"),
    [
        ("import numba", "ops", False),
        ("def f():\n    import numba", "ops", True),
        ("import triton", "ops", False),
        ("import triton.language as tl", "fused", True),
        ("import numba", "fused", False),
        ("from mambamim_nets.ops.interpolation.fused import fused", "ops", False),
        ("from mambamim_nets.ops.interpolation import fused", "ops", False),
        ("import mambamim_nets.ops.interpolation.fused", "ops", False),
        ("def f():\n    from mambamim_nets.ops.interpolation.fused import fused", "ops", True),
        ("from mambamim_nets.ops.uncompiled import call", "ops", False),
        ("from mambamim_nets.nets import HyMamba", "layers", False),
        ("from mambamim_nets import nets", "losses", False),
        ("from mambamim_nets import HyMamba", "nets", False),
        ("from .ops import toki", "layers", False),
        ("def f():\n    from monai.transforms import Compose", "nets", False),
        ("from monai.networks.blocks import UnetrUpBlock", "nets", True),
        ("from monai.networks.blocks import UnetrUpBlock", "layers", False),
        ("import bundles.pretrain", "bundle", False),
        ("from mambamim_nets.nets import HyMamba", "pretraining", True),
        ("from mambamim_nets.pretraining import MambaMIM", "nets", False),
        ("from mambamim_nets.bundle.handlers.checkpoints import Checkpoints", "bundle.inference", False),
        ("from mambamim_nets.bundle import handlers", "bundle.io", False),
        ("from mambamim_nets.bundle.data.splits import folds", "bundle.transforms", False),
        ("from mambamim_nets.bundle import Targets", "bundle.handlers", False),
        ("from mambamim_nets.bundle.labels import Targets", "bundle.handlers", True),
        ("import matplotlib", "bundle.visualize", False),
        ("import mambamim_nets.masking", "phantom", False),
        ("from mambamim_nets.bundle.data import splits", "reproduce", False),
        ("def f():\n    from mambamim_nets.bundle.data import splits", "reproduce", True),
        ("def f():\n    import torch", "reproduce", False),
    ],
)
def test_the_rules_catch_what_they_should(text, name, fits):
    assert all(allowed(item, RULES[name]) for item in imports(ast.parse(text))) is fits


def test_a_loop_over_no_files_fails(tmp_path):
    with pytest.raises(AssertionError, match="no file was found"):
        existing(tmp_path.glob("*.py"))


@pytest.mark.slow
def test_importing_the_package_is_light():
    """MONAI's own import brings plotting and its bundle module; ours adds nothing to it."""
    code = (
        "import sys, monai.networks.blocks; before = set(sys.modules); import mambamim_nets; "
        "print(*(set(sys.modules) - before)); print(*sys.modules)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    added, loaded = (set(line.split()) for line in run.stdout.splitlines())
    heavy = (
        "numba",
        "triton",
        "torch._dynamo",
        "mamba_ssm",
        "matplotlib",
        "monai.bundle",
        "mambamim_nets.bundle",
        "mambamim_nets.phantom",
    )
    assert [name for name in added if name.startswith(heavy)] == []
    assert "mambamim_nets.ops" in added
    assert KERNELS & loaded == set()


def mirrored(path: Path) -> str | None:
    """Return the test of a module, as a path below tests without its ending; None where it needs none."""
    module = path.relative_to(PACKAGE).with_suffix("")
    if module.name == "__init__" or str(module) in WITHOUT_TEST:
        return None
    if str(module.parent) in OPERATORS:
        module = module.parent
    return str(module.with_name(f"test_{module.name.strip('_')}"))


def test_tests_have_the_tree_of_the_package():
    """Every module has a test of its name; every test is of a module, or of a part of it: test_<module>_<part>."""
    wanted = {name for path in MODULES if (name := mirrored(path))}
    tests = {path.relative_to(REPOSITORY / "tests") for path in existing((REPOSITORY / "tests").rglob("test_*.py"))}
    found = {str(path.with_suffix("")) for path in tests if path.parts[0] not in OTHER_TESTS}
    assert sorted(wanted - found) == []
    of_a_part = {name for name in found if any(name.startswith(f"{other}_") for other in wanted)}
    assert sorted(found - wanted - of_a_part) == sorted(OF_NO_MODULE)
    assert all((PACKAGE / f"{name}.py").is_file() for name in WITHOUT_TEST)


def test_no_module_has_the_name_of_what_it_holds():
    """Such a name would be the function in one place and the module in another."""
    shadows = []
    for path in MODULES:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        held = {node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef)}
        if module_name(path).split(".")[-1] in held:
            shadows.append(module_id(path))
    assert shadows == []


def test_the_bundle_exports_what_configurations_and_pages_name():
    pages = [REPOSITORY / "README.md", *(REPOSITORY / "docs").glob("*.md"), *(REPOSITORY / "bundles").rglob("*.md")]
    files = [path for bundle in BUNDLES for path in (bundle / "configs").rglob("*.json")] + pages
    named = {
        name
        for path in files
        for name in re.findall(r"\b(?:mb|mambamim_nets\.bundle)\.(\w+)", path.read_text(encoding="utf-8"))
    }
    tree = ast.parse((PACKAGE / "bundle" / "__init__.py").read_text(encoding="utf-8"))
    exported = {alias.name for node in tree.body if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert exported == named - {path.stem for path in (PACKAGE / "bundle").iterdir()}


def test_bundles_are_complete():
    missing = []
    for bundle in BUNDLES:
        wanted = ["configs/metadata.json", "configs/train.json", "configs/logging.conf"]
        wanted += ["docs/README.md", "docs/data_license.txt", "LICENSE"]
        if bundle.name.endswith("_seg"):
            wanted += ["configs/evaluate.json", "configs/inference.json"]
        missing += [f"{bundle.name}/{name}" for name in wanted if not (bundle / name).is_file()]
    assert missing == []


def script(name: str, *arguments: str | Path) -> subprocess.CompletedProcess:
    command = [sys.executable, str(REPOSITORY / ".ci" / name), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_bundles_are_in_step():
    run = script("sync_bundles.py", "--check")
    assert run.returncode == 0, f"run make sync-bundles:\n{run.stdout}{run.stderr}"


def test_model_cards_are_current():
    run = script("model_cards.py", "--check")
    assert run.returncode == 0, f"run python .ci/model_cards.py:\n{run.stdout}{run.stderr}"


def test_a_hub_reads_a_model_card_as_it_is_meant():
    """Licence of the weights, not of the code, and measured numbers only."""
    hub = pytest.importorskip("huggingface_hub")
    licences, pages = {}, [bundle / "docs" / "MODEL_CARD.md" for bundle in BUNDLES]
    for page in existing(pages):
        bundle, data = page.parents[1], hub.ModelCard(page.read_text(encoding="utf-8")).data
        metadata = json.loads((bundle / "configs" / "metadata.json").read_text(encoding="utf-8"))
        licences[bundle.name] = data.license
        assert data.library_name == "monai" and data.datasets and data.pipeline_tag
        numbers = [float(value) for key, value in metadata["eval_metrics"].items() if key != "protocol"]
        assert [result.metric_value for result in data.eval_results or []] == numbers
        assert all(result.dataset_name == metadata["eval_metrics"]["protocol"] for result in data.eval_results or [])
        text = " ".join(page.read_text(encoding="utf-8").split())
        note = (bundle / "models" / "model.txt").read_text(encoding="utf-8")
        assert " ".join(note.split()) in text and metadata["intended_use"] in text
        stated = " ".join((bundle / "docs" / "data_license.txt").read_text(encoding="utf-8").split())
        assert all(entry["license"] in stated for entry in metadata["model_card"]["datasets"]), bundle.name
    assert licences["msd_seg"] == licences["pretrain"] == "cc-by-sa-4.0", "that of their data"
    assert licences["brats_seg"] == "other" and licences["btcv_seg"] == "cc-by-sa-4.0"


def test_a_card_without_a_licence_is_refused(tmp_path):
    for part in ("configs", "docs"):
        (tmp_path / "bundles" / "new_seg" / part).mkdir(parents=True)
    (tmp_path / "bundles" / "new_seg" / "configs" / "metadata.json").write_text('{"model_card": {"license": ""}}')
    run = script("model_cards.py", "--root", tmp_path)
    assert run.returncode == 1 and "model_card must have license, license_reason, pipeline_tag, datasets" in run.stderr
    assert not list((tmp_path / "bundles").rglob("*.md"))


def test_sync_keeps_task_blocks_and_repairs_bodies(tmp_path):
    for source in BUNDLES:
        shutil.copytree(source / "configs", tmp_path / "bundles" / source.name / "configs")
    shutil.copy(REPOSITORY / "LICENSE", tmp_path)
    shutil.copytree(tmp_path / "bundles" / "msd_seg", tmp_path / "bundles" / "new_seg")
    script("sync_bundles.py", "--root", tmp_path)
    assert script("sync_bundles.py", "--root", tmp_path, "--check").returncode == 0

    train = tmp_path / "bundles" / "new_seg" / "configs" / "train.json"
    before = train.read_text()
    head, body = before.split('    "body"', 1)
    train.write_text(
        head.replace('"task": "', '"task": "Other_') + '    "body"' + body.replace('"seed": 0', '"seed": 7')
    )
    (tmp_path / "bundles" / "pretrain" / "LICENSE").write_text("all rights reserved")
    check = script("sync_bundles.py", "--root", tmp_path, "--check")
    assert check.returncode == 1
    assert sorted(Path(line.split()[-1]).parts[1:] for line in check.stdout.splitlines()) == [
        ("new_seg", "configs", "train.json"),
        ("pretrain", "LICENSE"),
    ]
    assert '"seed": 7' in train.read_text()  # --check changes nothing
    assert script("sync_bundles.py", "--root", tmp_path).returncode == 0
    assert train.read_text() == before.replace('"task": "', '"task": "Other_', 1)
    assert json.loads(train.read_text())["task"].startswith("Other_")


def make_bundle(folder: Path, version: str = "0.2.0") -> None:
    metadata = {"version": version, "changelog": {"0.2.0": "second", "0.1.0": "first"}}
    files = {
        "configs/metadata.json": json.dumps(metadata),
        "models/model.pt": "weights",
        "docs/README.md": "text",
        "LICENSE": "licence",
        "runs/model_best.pt": "a user's own",
        "phantom/spleen/dataset.json": "{}",
        "docs/.DS_Store": "",
    }
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


def test_packages_are_reproducible_and_hold_the_bundle_only(tmp_path):
    outputs = []
    for name in ("one", "two"):
        make_bundle(tmp_path / name / "some_seg")
        (tmp_path / name / "some_seg" / "LICENSE").chmod(0o600 if name == "one" else 0o755)
        output = tmp_path / f"dist_{name}"
        run = script("package_bundles.py", "--bundles", tmp_path / name, "--output", output)
        assert run.returncode == 0, run.stderr
        outputs.append({path.name: path.read_bytes() for path in output.iterdir()})
    assert outputs[0] == outputs[1]
    assert sorted(outputs[0]) == ["SHA256SUMS", "some_seg_v0.2.0.zip"]
    archive = tmp_path / "dist_one" / "some_seg_v0.2.0.zip"
    assert zipfile.ZipFile(archive).namelist() == [
        f"some_seg/{name}" for name in ("LICENSE", "configs/metadata.json", "docs/README.md", "models/model.pt")
    ]


def test_packaging_refuses_a_version_without_changelog(tmp_path):
    make_bundle(tmp_path / "bundles" / "some_seg", version="0.3.0")
    run = script("package_bundles.py", "--bundles", tmp_path / "bundles", "--output", tmp_path / "dist")
    assert run.returncode == 1
    assert "version '0.3.0' must have an entry in changelog" in run.stderr
    assert not (tmp_path / "dist").exists()


@pytest.fixture(scope="module")
def tracked() -> list[Path]:
    """Files in git, and those that would be added."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    if not (REPOSITORY / ".git").exists() or shutil.which("git") is None:
        pytest.skip("not a git checkout, so nothing says which files belong to the repository")
    run = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True)
    return existing(path for name in run.stdout.split("\0") if name and (path := REPOSITORY / name).is_file())


def test_no_image_is_in_git(tracked):
    assert [str(path) for path in tracked if path.name.lower().endswith(IMAGES)] == []


def test_no_file_in_git_is_above_20_mib(tracked):
    assert [str(path) for path in tracked if path.stat().st_size > 20 * 2**20] == []
