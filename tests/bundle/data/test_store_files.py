"""Files of a store: the same bytes for the same voxels, whole or not there, as blosc2 and as Zarr."""

import os
import pickle
import sys

import blosc2
import numpy as np
import pytest
import torch
from helpers import refused
from store_files import lines_of, rows_of, store_of, write_scan, write_sources
from torch.utils.data import DataLoader

from mambamim_nets.bundle.data.store import Store
from mambamim_nets.bundle.data.store_crops import StoreCrops, StoreSampler
from mambamim_nets.bundle.data.store_files import BloscFiles, files_of
from mambamim_nets.prepare.__main__ import prepare

NAME = "scan-0123456789abcdef"
ROI = (16, 48, 16)
ARRAY = np.random.default_rng(0).integers(-1000, 1000, (100, 30, 97)).astype(np.int16)


def place_of(kind, folder):
    if kind == "blosc2":
        return str(folder)
    pytest.importorskip("zarr", reason="the extra [zarr] is not installed")
    return f"file://{folder}" if kind == "file" else f"memory://{folder}"


@pytest.fixture(params=["blosc2", "file", "memory"])
def place(request, tmp_path):
    return place_of(request.param, tmp_path / "store")


def remove(files, name, *keys):
    """Delete the files of a volume, or of Zarr only those of some keys."""
    if isinstance(files, BloscFiles):
        os.unlink(files.path(name))
    for key in [] if isinstance(files, BloscFiles) else keys or files.KEYS:
        files._fs()[0].rm(f"{files.path(name).partition('://')[2]}/{key}")


def test_a_volume_is_written_always_to_the_same_bytes_and_read_back(place):
    files = files_of(place)
    first, second = files.write_volume(NAME, ARRAY), files_of(f"{place}_two").write_volume(NAME, ARRAY)
    assert first == second and files.size(NAME) == first["file_bytes"] and list(files.names()) == [NAME]
    assert "/ef/" in files.path(NAME)
    box = slice(90, 100), slice(1, 30), slice(60, 80)
    for whole in (False, True):
        found = files.read(NAME, ARRAY.shape, box, whole)
        np.testing.assert_array_equal(found, ARRAY[box])
        assert found.dtype == np.int16
    with refused("shape (100, 30, 97) must be (100, 30, 96)"):
        files.read(NAME, (100, 30, 96), box)


def test_blocks_are_those_that_crops_are_read_by(tmp_path):
    files = files_of(tmp_path)
    files.write_volume(NAME, ARRAY)
    stored = blosc2.open(files.path(NAME))
    assert stored.chunks == (96, 96, 96) or stored.chunks == (96, 30, 96)
    assert max(stored.blocks) == 32
    zarr = pytest.importorskip("zarr", reason="the extra [zarr] is not installed")
    files = files_of(f"file://{tmp_path}")
    files.write_volume(NAME, ARRAY)
    stored = zarr.open_array(files.path(NAME), mode="r")
    assert stored.metadata.zarr_format == 3 and stored.chunks == (64, 64, 64) and stored.shards == (128, 64, 128)
    assert sorted(path.name for path in tmp_path.glob("volumes/ef/*.zarr/**/*") if path.is_file()) == ["0", "zarr.json"]
    np.testing.assert_array_equal(stored[:], ARRAY)


def test_what_is_broken_is_said(place):
    files = files_of(place)
    line = files.write_volume(NAME, ARRAY)
    assert files.broken(NAME, line, ARRAY.shape) == "" and files.holds(NAME, line)
    assert "must be [100, 30, 98]" in files.broken(NAME, line, (100, 30, 98))
    assert "bytes must be the" in files.broken(NAME, {**line, "sha256": "0"}, ARRAY.shape)
    remove(files, NAME)
    assert "cannot be read" in files.broken(NAME, line, ARRAY.shape) and not files.holds(NAME, line)
    assert files_of(place).size(NAME) is None


@pytest.mark.parametrize("whole", [False, True])
def test_a_shard_that_is_missing_is_an_error_and_not_zeros(tmp_path, whole):
    files = files_of(place_of("file", tmp_path))
    files.write_volume(NAME, np.zeros((20, 20, 20), np.int16))
    assert files.read(NAME, (20, 20, 20), (slice(5),) * 3, whole).max() == 0
    remove(files, NAME, "c/0/0/0")
    with refused("zarr"):
        files_of(files.place).read(NAME, (20, 20, 20), (slice(5),) * 3, whole)


def test_an_index_in_an_object_store_is_written_now_and_then_and_at_the_end(monkeypatch, tmp_path):
    files = files_of(place_of("memory", tmp_path))
    other = files_of(files.place)
    files.write("index/a.jsonl", b"")
    files.append("index/a.jsonl", b'{"n": 1}\n')
    assert list(other.lines("index/a.jsonl")) == []
    files.flush()
    assert list(other.lines("index/a.jsonl")) == [{"n": 1}]
    monkeypatch.setattr("mambamim_nets.bundle.data.store_files.PUT_EVERY", -1.0)
    files.append("index/a.jsonl", b'{"n": 2}\n')
    assert list(other.lines("index/a.jsonl")) == [{"n": 1}, {"n": 2}]


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    """The same sources as blosc2 and as Zarr, in a folder and in memory."""
    root = tmp_path_factory.mktemp("kinds")
    write_sources(root / "scans", scans=5)
    places = {kind: place_of(kind, root / kind) for kind in ("blosc2", "file", "memory")}
    for place in places.values():
        assert "5 volumes" in store_of(place, root / "scans")
    return places


def batches(place, workers=0):
    """Return two epochs of batches."""
    sampler = StoreSampler(4, 3, 1, 0)
    loader = DataLoader(StoreCrops(Store(place), ROI, seed=3), batch_size=1, sampler=sampler, num_workers=workers)
    found = []
    for epoch in (1, 2):
        sampler.set_epoch(epoch)
        found += [batch["image"] for batch in loader]
    return [image.numpy().tobytes() for image in found]


@pytest.mark.parametrize(("kind", "workers"), [("file", 0), ("memory", 0), ("file", 2), ("memory", 1)])
def test_samples_are_those_of_blosc2_to_the_byte_also_in_processes_that_were_forked(stores, kind, workers):
    batches(stores[kind])  # what is open in this process must not be used in another
    assert batches(stores[kind], workers) == batches(stores["blosc2"])


@pytest.mark.parametrize("kind", ["file", "memory"])
def test_a_store_of_zarr_is_verified_goes_on_and_knows_what_was_damaged(stores, kind, tmp_path, reliability):
    sources = write_sources(tmp_path / "scans", scans=3)
    place = place_of(kind, tmp_path / "store")
    assert "3 volumes" in store_of(place, sources)
    assert "0 files or series done, 3 known before" in store_of(place, sources)
    assert prepare(place, verify=True) == f"3 volumes of {place} are as they were written"
    if kind == "memory":
        assert lines_of(place)[0]["file_bytes"] > 1000
    else:
        assert rows_of(tmp_path / "store", "refused") == []
    files, name = files_of(place), lines_of(place)[0]["id"]
    content = files.content(name)
    files._write_volume(name, {**content, "c/0/0/0": content["c/0/0/0"][:-100]})
    with refused("1 of 3 volumes are broken", name) as end:
        prepare(place, verify=True)
    if kind == "memory":
        reliability("Stores", "a volume of Zarr that is cut short", end.value, hide=r"[\w-]*-[0-9a-f]{16}\b|\d{5,}")
    with refused(name):
        Store(place).files.read(name, lines_of(place)[0]["shape"], (slice(9),) * 3)
    assert "1 files or series done, 2 known before" in store_of(place, sources)
    assert files_of(place).content(name) == content


def test_a_store_is_named_as_it_was_prepared(stores, reliability):
    with refused("is of format 2, Zarr: a store of it is named at a URL") as end:
        Store(stores["file"].removeprefix("file://"))
    reliability("Stores", "a store of Zarr that is named by its folder", end.value)
    with refused("is of format 1, blosc2: a store of it is named by the path"):
        Store(f"file://{stores['blosc2']}")
    with refused("has no store.json"):
        Store(f"{stores['memory']}/nowhere")


def test_what_is_open_does_not_travel_to_another_process(stores):
    store = Store(stores["file"])
    image = StoreCrops(store, ROI, seed=3)[0]["image"]
    assert torch.equal(StoreCrops(pickle.loads(pickle.dumps(store)), ROI, seed=3)[0]["image"], image)


def test_a_package_that_is_missing_is_named_with_how_to_install_it(reliability, monkeypatch):
    words = "store s3://bucket/store: a store at a URL needs further packages; pip install fsspec zarr"
    with monkeypatch.context() as without, refused(words) as end:
        without.setitem(sys.modules, "zarr", None)
        files_of("s3://bucket/store")
    assert str(end.value) == words
    reliability("Stores", "a store at a URL without the extra [zarr]", end.value)
    pytest.importorskip("zarr", reason="the extra [zarr] is not installed")
    with refused("Protocol not known: nothing"):
        files_of("nothing://bucket/store")


def test_two_jobs_share_a_store_of_zarr(tmp_path):
    for number in range(4):
        write_scan(tmp_path / "scans" / f"{number}.nii.gz", number)
    place = place_of("file", tmp_path / "store")
    for part in (1, 0):
        store_of(place, tmp_path / "scans", part=part, parts=2)
    assert len(Store(place)) == 4 and len(files_of(place).indices()) == 2


@pytest.fixture
def bucket(monkeypatch):
    """The URL of a bucket of an S3 server on this machine."""
    server = pytest.importorskip("moto.server", reason="moto[server] and s3fs are not installed")
    s3fs = pytest.importorskip("s3fs", reason="moto[server] and s3fs are not installed")
    running = server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    running.start()
    host, port = running.get_host_and_port()
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
    s3fs.S3FileSystem.clear_instance_cache()
    s3fs.S3FileSystem().mkdir("scans")
    yield "s3://scans"
    running.stop()
    s3fs.S3FileSystem.clear_instance_cache()


@pytest.mark.slow
def test_a_store_in_s3_is_prepared_verified_and_read_like_one_in_a_folder(bucket, stores, tmp_path):
    sources = write_sources(tmp_path / "scans", scans=5)
    place = f"{bucket}/a/store"
    assert "5 volumes" in store_of(place, sources, workers=2)
    assert "0 files or series done, 5 known before" in store_of(place, sources)
    assert prepare(place, verify=True).startswith("5 volumes of s3://scans/a/store are as they were written")
    for workers in (0, 2):
        assert batches(place, workers) == batches(stores["blosc2"])
    files, name = files_of(place), Store(place)[0]["case"]
    shape = Store(place).volume(0).shape
    files._fs()[0].rm(f"{files.path(name).removeprefix('s3://')}/c/0/0/0")
    with refused(name):
        files_of(place).read(name, shape, (slice(5),) * 3)
    assert "1 files or series done, 4 known before" in store_of(place, sources)
    with refused("has no store.json"):
        Store(f"{bucket}/nowhere")
