"""The index of a store: order, duplicates, what is held out, filters, and how little memory it takes."""

import hashlib
import json
import subprocess
import sys

import numpy as np
import pytest
from helpers import environment, refused
from store_files import lines_of, store_of, write_scan, write_sources

from mambamim_nets.bundle.data.store import QUANTILES, Store


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("store")
    write_sources(root / "scans", scans=6)
    write_scan(root / "scans" / "sub-90" / "copy_of_ct_0.nii.gz", 0)  # the voxels of sub-00
    store_of(root / "store", root / "scans")
    return root / "store"


def cases(store):
    return [item["case"] for item in store]


def test_volumes_are_in_the_order_of_their_names_and_know_what_reading_needs(folder):
    store = Store(folder)
    assert cases(store) == sorted(cases(store)) and len(store) == 7
    assert store.spacing == [2.0, 2.0, 2.0] and store.sources == ["scans"]
    lines = {line["id"]: line for line in lines_of(folder)}
    for place in range(7):
        volume, line = store.volume(place), lines[cases(store)[place]]
        assert volume.files.size(volume.id) == line["file_bytes"]
        assert list(volume.shape) == line["shape"] and volume.modality == line["modality"]
        assert list(volume.quantiles) == list(QUANTILES) and list(volume.quantiles.values()) == line["quantiles"]
        assert volume.read((0, 0, 0), volume.shape).shape == volume.shape
    assert store[-1] == store[6] and [item["case"] for item in store[2:4]] == cases(store)[2:4]


def test_copies_are_duplicates_of_the_first_one(folder):
    left = cases(Store(folder, filter="not duplicate"))
    assert sorted(set(cases(Store(folder))) - set(left))[0].startswith(("copy_of_ct_0", "ct_0"))
    assert len(left) == 6
    assert len(Store(folder, filter="duplicate")) == 1


def test_what_is_held_out_is_decided_by_the_subject_and_copies_go_together(folder):
    for share in (0.2, 0.5, 0.8):
        parts = []
        for part in ("training", "held_out"):
            try:
                parts.append(cases(Store(folder, held_out=share, part=part)))
            except ValueError:
                parts.append([])
        training, held_out = parts
        assert sorted(training + held_out) == cases(Store(folder))
        copies = [any(name.startswith("ct_0") for name in part) for part in parts]
        assert copies == [any(name.startswith("copy_of") for name in part) for part in parts]
    more = set(cases(Store(folder, held_out=0.8, part="held_out")))
    assert more >= set(cases(Store(folder, held_out=0.5, part="held_out"))), "a larger share keeps what was held out"
    with refused("none of 7 volumes is left by filter None, not held out of held_out 0.999"):
        Store(folder, held_out=0.999)


def test_volumes_that_are_not_scaled_as_what_they_are_are_refused(folder):
    kinds = [line["modality"] for line in lines_of(folder)]
    for intensity, wrong, only in (("ct", "MR", "modality == 'CT'"), ("mr", "CT", "modality != 'CT'")):
        words = f"{kinds.count(wrong)} {wrong} among 7 volumes, and --intensity {intensity} is not for them"
        with refused(words, f'--filter "{only}"'):
            Store(folder, intensity=intensity)
        assert len(Store(folder, filter=only, intensity=intensity)) == 7 - kinds.count(wrong)
    assert len(Store(folder, intensity="ct_or_mr")) == len(Store(folder)) == 7


def test_a_filter_takes_what_it_names(folder):
    assert all(name.startswith("mr_") for name in cases(Store(folder, filter="modality == 'MR'")))
    with refused("names modalty, which no volume of", "known are", "modality"):
        Store(folder, filter="modalty == 'CT'")
    with refused("none of 7 volumes is left by filter"):
        Store(folder, filter="modality == 'PT'")


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda folder: (folder / "store.json").unlink(), "has no store.json"),
        (lambda folder: (folder / "store.json").write_text("{"), "is not valid JSON"),
        (lambda folder: (folder / "store.json").write_text('{"recipe": {}}'), "is no recipe of a store"),
        (lambda folder: (folder / "store.json").write_text('{"recipe": {"format": 9}}'), "is of format 9"),
        (lambda folder: (folder / "index" / "part-0-of-1.jsonl").write_text("{broken\n"), "line 1 is damaged"),
        (lambda folder: (folder / "index" / "part-0-of-1.jsonl").write_text(""), "holds no volume"),
    ],
    ids=["no recipe", "no JSON", "empty recipe", "later format", "damaged line", "empty"],
)
def test_a_damaged_store_is_refused_with_what_to_do(tmp_path, damage, words):
    write_scan(tmp_path / "scans" / "a.nii.gz")
    store_of(tmp_path / "store", tmp_path / "scans")
    damage(tmp_path / "store")
    with refused(words):
        Store(tmp_path / "store")


def test_a_store_that_was_not_named_is_asked_for():
    with refused("option --store is missing: give the folder"):
        Store(None)


MEASURE = """
import sys
from mambamim_nets.bundle.data.store import Store
from mambamim_nets.bundle.data.store_crops import StoreCrops
from mambamim_nets.bundle.runtime import peak_memory
store = Store(sys.argv[1], filter="not duplicate and modality == 'CT'")
crops = StoreCrops(store, (16, 16, 16), seed=0)
import pathlib
real = sorted(pathlib.Path(sys.argv[1]).glob("volumes/*/*.b2nd"))
from mambamim_nets.bundle.data.store_files import BloscFiles
BloscFiles.path = lambda self, name: str(real[int(name[-16:], 16) % len(real)])  # 20 files behind all names
peaks = []
for number in range(1000):
    crops[number]
    if number in (499, 999):
        peaks.append(peak_memory() / 2**20)
print(len(store), *peaks)
"""


@pytest.mark.slow
def test_a_hundred_thousand_volumes_take_little_memory_and_no_more_as_they_are_read(tmp_path):
    for number in range(20):
        write_scan(tmp_path / "scans" / f"{number}.nii.gz", number)
    store_of(tmp_path / "store", tmp_path / "scans")
    template = lines_of(tmp_path / "store")[0]
    shape = template["shape"]
    assert len({tuple(line["shape"]) for line in lines_of(tmp_path / "store")}) == 1
    with (tmp_path / "store" / "index" / "part-0-of-1.jsonl").open("w") as file:
        for number in range(100_000):
            digest = hashlib.sha256(str(number).encode()).hexdigest()
            line = {**template, "id": f"scan_{number:06d}-{digest[:16]}", "digest": digest[:32], "sha256": digest}
            file.write(json.dumps({**line, "path": f"{number}.nii.gz", "subject": str(number), "shape": shape}) + "\n")
    line = [sys.executable, "-c", MEASURE, str(tmp_path / "store")]
    done = subprocess.run(line, env=environment(), capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert "cannot be read" not in done.stderr
    volumes, half, whole = map(float, done.stdout.split())
    assert volumes == 100_000
    assert whole < 500, "MiB, PyTorch and MONAI included"
    assert whole - half < 5


def test_reading_a_box_gives_its_voxels_and_no_others(folder):
    store = Store(folder)
    for place in range(len(store)):
        volume = store.volume(place)
        whole = volume.read((0, 0, 0), volume.shape)
        start, size = (3, 1, 5), (17, 20, 9)
        box = tuple(slice(first, first + side) for first, side in zip(start, size, strict=True))
        np.testing.assert_array_equal(volume.read(start, size), whole[box])
        assert whole.dtype == np.float32
