"""CONTRIBUTING.md and ARCHITECTURE.md name modules and names in them: they are there."""

import re

import pytest
from helpers import REPOSITORY, existing

PAGE = (REPOSITORY / "docs" / "CONTRIBUTING.md").read_text()
PATH = re.compile(r"`((?:mambamim_nets|bundles|tests|docs|configs)/[\w./-]+|[\w./-]+\.(?:txt|py))`")
NAMES = {
    "mambamim_nets/bundle/metrics/segmentation.py": ["case_metrics", "METRICS"],
    "mambamim_nets/bundle/io/headers.py": ["Header"],
    "mambamim_nets/bundle/io/scan_formats.py": ["FORMATS"],
    "mambamim_nets/pretraining/base.py": ["MIMOutput"],
    "mambamim_nets/bundle/options.py": ["OPTIONS"],
    "mambamim_nets/records.py": ["ARCHITECTURES", "SETTINGS"],
    "tests/conftest.py": ["reliability"],
}
ELSEWHERE = {"plain.py": "mambamim_nets/ops/interpolation", "planes.py": "mambamim_nets/bundle/visualize"}
ELSEWHERE |= {"base.py": "mambamim_nets/pretraining", "itk_files.py": "mambamim_nets/bundle/io"}


def test_every_path_is_there():
    paths = {path.rstrip("/") for path in PATH.findall(PAGE)}
    assert len(paths) > 15
    missing = [path for path in paths if not (REPOSITORY / ELSEWHERE.get(path, "") / path).exists()]
    assert not [path for path in missing if not list(REPOSITORY.glob(f"bundles/*/{path}"))]


@pytest.mark.parametrize("path", NAMES)
def test_every_name_is_in_its_module(path):
    text = (REPOSITORY / path).read_text()
    for name in NAMES[path]:
        assert f"`{name}`" in PAGE and re.search(rf"^(?:    )?(?:class |def )?{name}\b", text, re.MULTILINE), name


@pytest.mark.parametrize("wanted", ["metric of label maps", "reader", "pre-training method", "picture", "option"])
def test_there_is_a_row_for_what_people_add(wanted):
    assert re.search(rf"^\| an? {wanted}", PAGE, re.MULTILINE)


def test_every_name_of_the_architecture_is_in_the_package():
    page = (REPOSITORY / "docs" / "ARCHITECTURE.md").read_text()
    package = REPOSITORY / "mambamim_nets"
    files = existing(package.rglob("*"))
    known = {
        str(file.relative_to(base))
        for base in (REPOSITORY, package, package / "bundle")
        for file in files
        if file.is_relative_to(base)
    }
    known |= {file.name for file in files} | {name.removesuffix(".py") for name in known}
    text = "\n".join(file.read_text(encoding="utf-8") for file in files if file.suffix == ".py")
    known |= set(re.findall(r"^ *(?:def|class) (\w+)", text, re.MULTILINE))
    named = {name.split("(")[0] for name in re.findall(r"`([^`\n]+)`", page)}
    named = {
        name for name in named if not name.startswith("-") and "#" not in name and not name.endswith((".pt", ".json"))
    }
    assert len(named) > 40
    missing = {n for n in named if n not in known and n.split(".")[-1] not in known and not (REPOSITORY / n).exists()}
    assert missing == set()
