"""The command: parts, resuming, what is refused, and that everything can be read back."""

import errno
import json
import shutil

import processes
import pytest
from helpers import environment, refused
from store_files import lines_of, rows_of, store_of, write_scan, write_sources

from mambamim_nets.bundle.data import store_files as data_files
from mambamim_nets.bundle.data.store import Store
from mambamim_nets.prepare import __main__ as main
from mambamim_nets.prepare.__main__ import prepare


@pytest.fixture
def sources(tmp_path):
    return write_sources(tmp_path / "scans")


@pytest.fixture
def store(tmp_path, sources):
    store_of(tmp_path / "store", sources)
    return tmp_path / "store"


def files(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.glob("volumes/*/*"))}


def test_four_parts_are_one_part(tmp_path, store, sources):
    for part in (3, 0, 2, 1):
        store_of(tmp_path / "parts", sources, part=part, parts=4)
    assert len(list((tmp_path / "parts").glob("index/*"))) == 4
    assert files(tmp_path / "parts") == files(store) and len(files(store)) == 4
    assert lines_of(tmp_path / "parts") == lines_of(store)
    one, four = Store(store), Store(tmp_path / "parts")
    assert list(one) == list(four)
    assert [one.volume(place).quantiles for place in range(4)] == [four.volume(place).quantiles for place in range(4)]


def test_the_same_command_again_writes_nothing(store, sources):
    before = {path: path.stat().st_mtime_ns for path in store.glob("volumes/*/*")}
    index = next(store.glob("index/*")).read_bytes()
    assert "0 files or series done, 4 known before; 4 volumes" in store_of(store, sources)
    assert {path: path.stat().st_mtime_ns for path in store.glob("volumes/*/*")} == before
    assert next(store.glob("index/*")).read_bytes() == index
    assert "4 known before" in store_of(store, sources, part=0, parts=1)
    assert "0 files or series done" in store_of(store, sources, part=1, parts=2), "another part knows it too"


def test_what_changed_is_prepared_again_and_what_is_gone_stays(tmp_path, store, sources):
    write_scan(sources / "sub-00" / "ct_0.nii.gz", seed=9)
    write_scan(sources / "sub-07" / "ct_7.nii.gz", seed=7)
    (sources / "sub-01" / "mr_1.nii.gz").unlink()
    before = files(store)
    assert "2 files or series done, 2 known before; 5 volumes" in store_of(store, sources, part=0, parts=1)
    assert len(Store(store)) == 5
    changed = [name for name, content in files(store).items() if before.get(name) != content]
    assert sorted(name.split("/")[-1][:4] for name in changed) == ["ct_0", "ct_7"]
    write_scan(sources / "sub-00" / "ct_0.nii.gz", seed=11)
    for part in range(2):  # the index of part 0 of 1 still has the line of before
        store_of(store, sources, part=part, parts=2)
    held = Store(store)
    assert len(held) == 5
    assert "5 volumes" in prepare(str(store), verify=True), "the line that describes the file is the one that counts"
    (place,) = (place for place, item in enumerate(held) if item["case"].startswith("ct_0"))
    newest = [line["quantiles"] for line in lines_of(store) if line["path"].endswith("ct_0.nii.gz")]
    assert len(newest) == 2 and newest[0] != newest[1]
    held_quantiles = list(held.volume(place).quantiles.values())
    store_of(tmp_path / "fresh", sources)
    fresh = Store(tmp_path / "fresh")
    (place,) = (place for place, item in enumerate(fresh) if item["case"].startswith("ct_0"))
    assert held_quantiles == list(fresh.volume(place).quantiles.values())


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"spacing": [1.0, 1.0, 1.0]}, ("was prepared with spacing [2.0, 2.0, 2.0] (here [1.0, 1.0, 1.0])",)),
        ({"intensity": "ct"}, ("was prepared with intensity ct_or_mr (here ct)", "another --store")),
    ],
    ids=["spacing", "intensity"],
)
def test_another_recipe_is_refused(store, sources, options, words, reliability):
    with refused(*words) as end:
        store_of(store, sources, **options)
    reliability("Stores", f"more volumes with another {next(iter(options))}", end.value)


def test_a_recipe_changed_by_hand_is_refused(store, reliability):
    path = store / "store.json"
    path.write_text(path.read_text().replace("2.0", "1.0"))
    with refused("was changed by hand") as end:
        Store(store)
    reliability("Stores", "a recipe that was changed by hand", end.value)


def test_a_truncated_volume_is_found_and_made_again(store, sources, reliability):
    path = next(store.glob("volumes/*/*"))
    content = path.read_bytes()
    path.write_bytes(content[:-100])
    with refused("1 of 4 volumes are broken", path.name) as end:
        prepare(str(store), verify=True)
    reliability("Stores", "a volume that is cut short", end.value, hide=r"[\w-]*-[0-9a-f]{16}\b|\d{5,}")
    assert "1 files or series done, 3 known before" in store_of(store, sources)
    assert path.read_bytes() == content
    assert prepare(str(store), verify=True).startswith("4 volumes")


def test_a_changed_bit_is_found(store):
    path = next(store.glob("volumes/*/*"))
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with refused("1 of 4 volumes are broken"):
        prepare(str(store), verify=True)


def test_a_full_disk_ends_the_command_and_the_next_one_goes_on(tmp_path, sources, monkeypatch, reliability):
    room = iter([True] * 4 + [False])  # recipe, index, two volumes

    def full(path, write_file):
        if not next(room):
            raise OSError(errno.ENOSPC, "No space left on device")
        return atomic(path, write_file)

    atomic = data_files.atomic_write
    with monkeypatch.context() as patched, refused("--store", "No space left on device", "make room") as end:
        patched.setattr(data_files, "atomic_write", full)
        store_of(tmp_path / "store", sources)
    reliability("Stores", "a disk that is full", end.value)
    assert "2 files or series done, 2 known before; 4 volumes" in store_of(tmp_path / "store", sources)


def test_an_index_that_a_kill_cut_short_is_repaired(store, sources):
    index = next(store.glob("index/*"))
    whole = index.read_bytes()
    index.write_bytes(whole[:-50])
    assert len(Store(store)) == 3
    assert "1 files or series done, 3 known before; 4 volumes" in store_of(store, sources)
    assert index.read_bytes() == whole


def test_a_source_that_vanishes_while_it_is_prepared_is_a_row_of_the_table(tmp_path, sources, monkeypatch):
    listed = main.found_in

    def vanishing(source):
        yield from listed(source)
        (sources / "sub-02" / "ct_2.nii.gz").unlink()

    with monkeypatch.context() as patched:
        patched.setattr(main, "found_in", vanishing)
        assert "3 volumes" in store_of(tmp_path / "store", sources)
    (row,) = rows_of(tmp_path / "store", "refused")
    assert row["path"] == "sub-02/ct_2.nii.gz" and "is gone since it was listed" in row["reason"]
    write_scan(sources / "sub-02" / "ct_2.nii.gz", 2)
    assert "1 files or series done, 3 known before; 4 volumes" in store_of(tmp_path / "store", sources)
    with refused("does not exist; name a folder"):
        store_of(tmp_path / "store", tmp_path / "nowhere")


def test_two_sources_of_one_name_are_not_mixed_up(tmp_path, store, reliability):
    other = write_sources(tmp_path / "other" / "scans", scans=1)
    with refused("source 'scans' of this store lies in", "give the new one another name") as end:
        store_of(store, other)
    reliability("Stores", "another source of a name that is there", end.value)
    prepare(str(store), sources=[{"path": str(other), "name": "second"}], spacing=[2.0, 2.0, 2.0])
    assert sorted({item["source"] for item in Store(store)}) == ["scans", "second"]
    with refused("different names", "scans"):
        prepare(str(store), sources=[str(other), str(tmp_path / "scans")], spacing=[2.0, 2.0, 2.0])


def test_a_filter_leaves_volumes_out_and_another_one_looks_again(tmp_path, sources):
    store = tmp_path / "store"
    assert "2 volumes" in store_of(store, sources, filter="modality == 'CT' and spacing_z <= 3")
    assert {row["reason"].split(": ")[1] for row in rows_of(store, "refused")} == {
        "not wanted by filter modality == 'CT' and spacing_z <= 3"
    }
    assert "0 files or series done" in store_of(store, sources, filter="modality == 'CT' and spacing_z <= 3")
    assert "2 files or series done, 2 known before; 4 volumes" in store_of(store, sources)


def test_volumes_that_a_later_filter_would_leave_out_stay_with_a_warning(tmp_path, sources, caplog):
    store = tmp_path / "store"
    store_of(store, sources)
    before = len(Store(store))
    assert not caplog.records, "nothing was stored before"
    store_of(store, sources, filter="id != 'none'")
    assert not caplog.records, "all of them meet it"
    store_of(store, sources, filter="modality == 'CT' and spacing_z <= 3")
    (warning,) = [record.getMessage() for record in caplog.records]
    assert warning.startswith("2 volumes that were stored before do not meet filter \"modality == 'CT' and")
    assert "by its own option --filter" in warning and len(Store(store)) == before == 4


@pytest.mark.parametrize(
    ("expression", "words"),
    [
        ("modalty == 'CT'", "names 'modalty', which no volume has; did you mean modality"),
        ("not duplicate", "duplicates are known when all parts are written"),
        ("__import__('os')", "must compare names with values"),
    ],
)
def test_a_filter_is_checked_before_any_work(tmp_path, sources, expression, words, reliability):
    with refused(words) as end:
        store_of(tmp_path / "store", sources, filter=expression)
    reliability("Stores", f"--filter {expression}", end.value)
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"part": 4, "parts": 4}, "--part 4 must be below --parts 4"),
        ({"workers": 0}, "--workers 0 must be a whole number of at least 1"),
        ({"spacing": "fine"}, "--spacing 'fine' must be a list of three numbers"),
        ({"intensity": "pet"}, "--intensity 'pet' must be one of ct, mr, ct_or_mr"),
        ({"assume_axes": "XYZ"}, "assume_axes 'XYZ' must be three letters"),
    ],
)
def test_options_are_checked(tmp_path, sources, options, words, reliability):
    with refused(words) as end:
        store_of(tmp_path / "store", sources, **options)
    reliability("Stores", " ".join(f"--{name} {value}" for name, value in options.items()), end.value)


def test_a_folder_of_something_else_is_refused(tmp_path, sources, reliability):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.tex").touch()
    with refused("holds other files, such as chapter.tex") as end:
        store_of(tmp_path / "thesis", sources)
    reliability("Stores", "a folder with other files", end.value)


def test_a_dry_run_says_what_there_is_and_writes_nothing(tmp_path, sources):
    (sources / "broken.nii.gz").write_bytes(b"no image")
    said = store_of(tmp_path / "store", sources, dry_run=True)
    assert said.startswith("scans: 4 volumes, 1 refused, 0.00 GiB\nrefused: broken.nii.gz cannot be read")
    assert not (tmp_path / "store").exists()


@pytest.mark.slow
def test_workers_make_the_same_store_and_the_command_ends_with_one_sentence(tmp_path, store, sources):
    line = ["-m", "mambamim_nets.prepare", "--spacing", "[2,2,2]", "--store", "two"]

    def command(*options):
        (done,) = processes.run([*line, *options], cwd=tmp_path, variables=[environment()])
        return done

    done = command("--sources", str(sources), "--workers", "2")
    assert done.returncode == 0, done.stderr
    assert files(tmp_path / "two") == files(store)
    assert [json.dumps(line) for line in lines_of(tmp_path / "two")] == [json.dumps(line) for line in lines_of(store)]
    shutil.rmtree(sources)
    done = command("--sources", str(sources))
    assert done.returncode == 1
    words = f"error: source '{sources}' does not exist; name a folder, a file or a list"
    assert done.stderr.splitlines()[-1] == words


def test_the_part_of_a_volume_does_not_depend_on_what_else_there_is(tmp_path, sources):
    store_of(tmp_path / "before", sources, part=1, parts=2)
    write_scan(sources / "sub-000" / "first.nii.gz", 5)
    store_of(tmp_path / "after", sources, part=1, parts=2)
    before, after = (set(files(tmp_path / name)) for name in ("before", "after"))
    assert before <= after and not {name for name in after - before if "first" not in name}


@pytest.mark.parametrize(
    ("shape", "words"),
    [((20, 44, 36), "must lie on the grid of the image"), (None, "is gone since it was listed")],
    ids=["on another grid", "that is not there"],
)
def test_a_volume_whose_mask_cannot_be_used_is_a_row_of_the_table(tmp_path, shape, words):
    write_scan(tmp_path / "a.nii.gz")
    if shape is not None:
        write_scan(tmp_path / "mask.nii.gz", shape=shape)
    (tmp_path / "scans.csv").write_text("image,face_mask\na.nii.gz,mask.nii.gz\n")
    assert "0 volumes, 0 of them with findings, 1 refused" in store_of(tmp_path / "store", tmp_path / "scans.csv")
    (row,) = rows_of(tmp_path / "store", "refused")
    assert words in row["reason"] and "mask.nii.gz" in row["reason"]


def test_a_mask_that_changes_or_breaks_is_made_again(tmp_path):
    write_scan(tmp_path / "a.nii.gz")
    write_scan(tmp_path / "mask.nii.gz")
    (tmp_path / "scans.csv").write_text("image,body_mask\na.nii.gz,mask.nii.gz\n")
    store_of(tmp_path / "store", tmp_path / "scans.csv")
    (path,) = (tmp_path / "store").glob("volumes/*/*.masks.b2nd")
    path.write_bytes(path.read_bytes()[:-9])
    with refused("1 of 1 volumes are broken", "masks.b2nd"):
        prepare(str(tmp_path / "store"), verify=True)
    assert "1 files or series done" in store_of(tmp_path / "store", tmp_path / "scans.csv")
    write_scan(tmp_path / "mask.nii.gz", seed=4)
    assert "1 files or series done" in store_of(tmp_path / "store", tmp_path / "scans.csv")
    assert prepare(str(tmp_path / "store"), verify=True).startswith("1 volumes of")


@pytest.mark.parametrize(
    ("columns", "row"),
    [
        ("image,subject", "a.nii.gz,two"),
        ("image,subject,contrast", "a.nii.gz,one,yes"),
        ("image,subject,modality", "a.nii.gz,one,MR"),
        ("image,subject,body_mask", "a.nii.gz,one,mask.nii.gz"),
        ("image,subject", "b.nii.gz,one"),
    ],
    ids=["subject", "further column", "modality", "mask", "image"],
)
def test_a_row_that_says_something_else_is_done_again(tmp_path, columns, row):
    write_scan(tmp_path / "a.nii.gz"), write_scan(tmp_path / "mask.nii.gz"), write_scan(tmp_path / "b.nii.gz", seed=2)
    table = tmp_path / "scans.csv"
    table.write_text("image,subject\na.nii.gz,one\n")
    store_of(tmp_path / "store", table)
    assert "0 files or series done, 1 known before" in store_of(tmp_path / "store", table)
    table.write_text(f"{columns}\n{row}\n")
    assert "1 files or series done, 0 known before" in store_of(tmp_path / "store", table)
    assert "0 files or series done, 1 known before" in store_of(tmp_path / "store", table)
    line = lines_of(tmp_path / "store")[-1]
    said = dict(zip(columns.split(","), row.split(","), strict=True))
    assert line["path"] == said["image"] and line["subject"] == said["subject"]
    assert line["metadata"] == ({"contrast": "yes"} if "contrast" in said else {})
    assert line["modality"] == said.get("modality", "CT") and ("masks" in line) == ("body_mask" in said)
    assert prepare(str(tmp_path / "store"), verify=True).startswith(f"{len(lines_of(tmp_path / 'store'))} volumes of")


def test_a_scan_refused_for_its_modality_is_looked_at_again_when_that_is_corrected(tmp_path):
    write_scan(tmp_path / "a.nii.gz", kind="ct")
    table = tmp_path / "scans.csv"
    table.write_text("image,modality\na.nii.gz,MR\n")
    store_of(tmp_path / "store", table)
    table.write_text("image,modality\na.nii.gz,CT\n")
    assert "1 files or series done" in store_of(tmp_path / "store", table)
    assert lines_of(tmp_path / "store")[-1]["modality"] == "CT"
