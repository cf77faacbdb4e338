"""The recipe and the index of a store, wherever it lies."""

import pytest
from helpers import refused

from mambamim_nets.bundle.data.store import Recipe, read_recipe
from mambamim_nets.bundle.data.store_files import files_of
from mambamim_nets.prepare.read import Found
from mambamim_nets.prepare.write import Index, keep_recipe


def lines_for(path, count=1):
    known = {"source": "a", "root": "/a", "path": path, "source_bytes": 1, "source_time": 2, "series": ""}
    return [{**known, "refused": "no image", "again": False, "asked": [None]} for _ in range(count)]


@pytest.fixture(params=["folder", "file", "memory"])
def files(request, tmp_path):
    if request.param == "folder":
        return files_of(tmp_path / "store")
    pytest.importorskip("zarr", reason="the extra [zarr] is not installed")
    return files_of(f"file://{tmp_path}/store" if request.param == "file" else f"memory://{tmp_path.name}/store")


def test_a_recipe_is_kept_and_another_refused(files):
    keep_recipe(files, Recipe((1.0, 1.0, 2.0), format=files.format))
    assert read_recipe(files).spacing == (1.0, 1.0, 2.0)
    with refused("was prepared with spacing [1.0, 1.0, 2.0] (here [1.0, 1.0, 1.0])"):
        keep_recipe(files, Recipe((1.0, 1.0, 1.0), format=files.format))


def test_an_index_knows_what_was_appended_and_drops_what_was_replaced(files):
    index = Index(files, 0, 1, [None])
    index.append(lines_for("x"))
    index.append(lines_for("y", 2))
    index.append(lines_for("x"))
    assert [line["path"] for line in files.lines(index.path)] == ["x", "y", "y", "x"]
    assert index.close() == {"stored": 0, "refused": 3, "odd": 0}
    again = Index(files, 1, 2, [None])
    x, z = Found("a", "/a", "x"), Found("a", "/a", "z")
    assert again.has(x, (1, 2)) and not again.has(x, (1, 3)) and not again.has(z, (1, 2))
    assert not again.has(Found("a", "/a", "x", modality="MR"), (1, 2)), "another modality may not be refused"
    assert files.paths("index") == ["index/part-0-of-1.jsonl", "index/part-1-of-2.jsonl"]
    assert files.open("tables/part-0-of-1_refused.csv").read().count(b"no image") == 3
