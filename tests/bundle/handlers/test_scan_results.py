"""Reports of new scans: a row is the last thing written, and says what it was made from; runs go on where one ended."""

import csv
import logging
import os
import shutil
import signal
import subprocess
import sys
import time

import nibabel as nib
import numpy as np
import pytest
from helpers import BUNDLES
from monai.data import Dataset

from mambamim_nets import phantom
from mambamim_nets.bundle.files import HOST, only_run, read_json, release
from mambamim_nets.bundle.handlers.identity import Settings
from mambamim_nets.bundle.handlers.scan_results import ScanResults, _settings
from mambamim_nets.bundle.inference.scan_lists import scans
from mambamim_nets.bundle.inference.scan_loader import ScanLoader, finish

COLUMNS = ["scan", "mean", "warnings", "weights", "made from"]


class Engine:
    """As much of an evaluator as a report sees: its batch and output are of one scan after the other."""

    def __init__(self, loader):
        self.state, self.loader, self.handlers = self, loader, {}

    def add_event_handler(self, event, handler):
        self.handlers[event.name] = handler

    def run(self):
        self.handlers["STARTED"](self)
        for name in (batch["name"][0] for batch in self.loader):
            self.batch = self.output = [{"name": name}]
            self.handlers["ITERATION_COMPLETED"](self)
        self.handlers["COMPLETED"](self)


class Report(ScanResults):
    """Write the mean of a scan into a text file."""

    def __init__(self, loader, folder, checkpoint=None, overwrite=False):
        super().__init__(loader, str(folder), "means.csv", ["mean"], checkpoint, overwrite)
        self.seen = []

    def files(self, name):
        return [f"{name}.txt"]

    def write(self, name, item):
        self.seen.append(name)
        if "warn" in name:
            self.warn(name, "look at\nthis")
        if "lack" in name:
            self.lacks(name, "no picture")
        (self.folder / f"{name}.txt").write_text("0.5")
        return ["0.5"]


def listed(folder, names="abc"):
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        path = folder / f"{name}.nii.gz"
        if not path.exists():
            nib.save(nib.Nifti1Image(np.random.default_rng(0).random((4, 4, 4), np.float32), np.eye(4)), path)
    return scans(str(folder), str(folder / "out"))


def run(tmp_path, kind=Report, items=None, names="abc", **options):
    """Run a report over some scans; return what it wrote now."""
    loader = ScanLoader(Dataset(listed(tmp_path / "in", names) if items is None else items))
    report = kind(loader, tmp_path / "out", **options)
    engine = Engine(loader)
    report.attach(engine)
    engine.run()
    return report


def table(path):
    with path.open(newline="") as file:
        return list(csv.reader(file))


# --- what is done is left out ---------------------------------------------------------------------


def test_a_second_run_leaves_out_what_is_done(tmp_path, caplog):
    assert run(tmp_path).seen == ["a", "b", "c"]
    before = (tmp_path / "out" / "means.csv").read_text()
    with caplog.at_level(logging.INFO):
        report = run(tmp_path)
        finish(report.loader)
    assert report.seen == []
    assert "3 of 3 scans are left out" in caplog.text and "--overwrite true" in caplog.text
    assert "3 of 3 scans done" in caplog.text
    assert (tmp_path / "out" / "means.csv").read_text() == before
    assert run(tmp_path, overwrite=True).seen == ["a", "b", "c"]
    assert [row[0] for row in table(tmp_path / "out" / "means.csv")] == ["scan", "a", "b", "c"]


def test_new_scans_are_added(tmp_path):
    run(tmp_path, names="b")
    assert run(tmp_path, names="abc").seen == ["a", "c"]
    assert [row[0] for row in table(tmp_path / "out" / "means.csv")] == ["scan", "a", "b", "c"]


def another_image(tmp_path):
    path = tmp_path / "in" / "b.nii.gz"
    nib.save(nib.Nifti1Image(np.random.default_rng(1).random((4, 4, 4), np.float32), np.eye(4)), path)


def a_touched_image(tmp_path):
    os.utime(tmp_path / "in" / "b.nii.gz", (1, 1))


def a_lost_result(tmp_path):
    (tmp_path / "out" / "b.txt").unlink()


def a_cut_row(tmp_path):
    path = tmp_path / "out" / "means.csv"
    path.write_text("\n".join(line[:-10] if line[0] == "b" else line for line in path.read_text().splitlines()))


@pytest.mark.parametrize("change", [another_image, a_touched_image, a_lost_result, a_cut_row])
def test_a_scan_is_done_again_where_its_row_is_not_of_what_there_is(tmp_path, change):
    run(tmp_path)
    change(tmp_path)
    assert run(tmp_path).seen == ["b"]
    assert run(tmp_path).seen == []


def of_one_time(folder, seed):
    """Write a scan b whose file has the same name, size and time of change, whatever is in it."""
    image = nib.Nifti1Image(np.random.default_rng(seed).random((4, 4, 4), np.float32), np.eye(4))
    folder.mkdir(parents=True)
    nib.save(image, folder / "b.nii")
    os.utime(folder / "b.nii", (1, 1))
    return folder


def test_results_of_another_scan_of_the_same_name_are_kept(tmp_path, reliability):
    def items(place):
        return scans(str(tmp_path / place), str(tmp_path / "out"))

    of_one_time(tmp_path / "one", 0), of_one_time(tmp_path / "two", 1)
    listed(tmp_path / "two", "c")
    assert run(tmp_path, items=items("one")).seen == ["b"]
    (row,) = table(tmp_path / "out" / "means.csv")[1:]
    entry = read_json(tmp_path / "out" / "report.json")["scans"]["b"]
    report = run(tmp_path, items=items("two"))
    assert report.seen == ["c"] and list(report.loader.failures) == ["b"]
    assert f"has results of another scan of this name, {tmp_path}/one/b.nii, which" in report.loader.failures["b"]
    failure = ValueError(f"b: {report.loader.failures['b']}")
    reliability("Inference", "a scan whose name has results of another scan, elsewhere", failure)
    assert row in table(tmp_path / "out" / "means.csv")
    assert read_json(tmp_path / "out" / "report.json")["scans"]["b"] == entry
    assert run(tmp_path, items=items("two"), overwrite=True).seen == ["b", "c"]
    shutil.move(tmp_path / "two", tmp_path / "moved")
    assert run(tmp_path, items=items("moved")).seen == [], "the same scans elsewhere"
    os.utime(tmp_path / "moved" / "b.nii", (2, 2))
    assert run(tmp_path, items=items("moved")).seen == ["b"]


def test_a_series_is_of_all_its_slices(tmp_path):
    pytest.importorskip("pydicom")
    from dicom_series import write_series

    write_series(tmp_path / "in" / "s")
    items = scans(str(tmp_path / "in"), str(tmp_path / "out"))
    assert run(tmp_path, items=items).seen == ["s"]
    assert run(tmp_path, items=items).seen == []
    os.utime(sorted((tmp_path / "in" / "s").iterdir())[-1], (1, 1))
    assert run(tmp_path, items=items).seen == ["s"]


def test_other_weights_and_settings_make_other_results(tmp_path, monkeypatch):
    weights = tmp_path / "w.pt"
    weights.write_bytes(b"one")
    run(tmp_path, checkpoint=str(weights))
    assert run(tmp_path, checkpoint=str(shutil.copy(weights, tmp_path / "same.pt"))).seen == []
    weights.write_bytes(b"two")
    assert run(tmp_path, checkpoint=str(weights)).seen == ["a", "b", "c"]
    settings = Settings({"overlap": 0.75, "previews": True}, {"overlap": {"overlap"}, "previews": {"previews"}})
    monkeypatch.setattr("mambamim_nets.bundle.handlers.scan_results.run_settings", lambda: settings)
    assert run(tmp_path, checkpoint=str(weights)).seen == ["a", "b", "c"]
    settings.values["previews"] = False
    assert run(tmp_path, checkpoint=str(weights)).seen == []
    settings.values["overlap"] = 0.25
    assert run(tmp_path, checkpoint=str(weights)).seen == ["a", "b", "c"]


# --- the row is last ------------------------------------------------------------------------------


@pytest.mark.parametrize("end", [KeyboardInterrupt, SystemExit, ValueError])
def test_an_interrupted_scan_has_no_row(tmp_path, end):
    """Nor the one of an earlier run with other weights, whose files it had begun to replace."""

    class Interrupted(Report):
        def write(self, name, item):
            if name == "b":
                (self.folder / "b.txt").write_text("half")
                raise end
            return super().write(name, item)

    weights = tmp_path / "w.pt"
    weights.write_bytes(b"one")
    run(tmp_path, checkpoint=str(weights))
    weights.write_bytes(b"two")
    if end is ValueError:
        assert list(run(tmp_path, Interrupted, checkpoint=str(weights)).loader.failures) == ["b"]
    else:
        with pytest.raises(end):
            run(tmp_path, Interrupted, checkpoint=str(weights))
    rows = table(tmp_path / "out" / "means.csv")
    assert [row[0] for row in rows] == ["scan", "a", "c"], "that of c is of the weights before"
    weights.write_bytes(b"two")
    assert run(tmp_path, checkpoint=str(weights)).seen == (["b"] if end is ValueError else ["b", "c"])


def test_what_is_doubtful_stands_in_the_row(tmp_path, caplog):
    items = listed(tmp_path / "in", ["plain", "warn"])
    items[0]["warnings"] = ["a slice may be missing", "assumed axes"]
    run(tmp_path, items=items)
    rows = {row[0]: row for row in table(tmp_path / "out" / "means.csv")}
    assert rows["scan"] == COLUMNS
    assert rows["plain"][2] == "a slice may be missing; assumed axes" and rows["warn"][2] == "look at this"
    assert "warn: look at" in caplog.text


def test_a_scan_that_lacks_a_result_is_named_at_the_end(tmp_path, caplog):
    with caplog.at_level(logging.INFO):
        report = run(tmp_path, items=listed(tmp_path / "in", ["a", "lack"]))
        with pytest.raises(SystemExit) as end:
            finish(report.loader)
    assert str(end.value) == "1 of 2 scans lack a result:\nlack: no picture"
    assert "2 of 2 scans done" in caplog.text and "lack: no picture" in caplog.text
    assert {row[0]: row[2] for row in table(tmp_path / "out" / "means.csv")}["lack"] == "no picture"


# --- tables of others -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "earlier",
    ["scan,mean\nb,0.1\nold,0.2\n", "scan,mean,warnings,made from\nb,0.1,look,123\nold,0.2,,\n"],
    ids=["without warnings", "without weights"],
)
def test_a_table_of_an_earlier_version_keeps_its_rows(tmp_path, earlier):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "means.csv").write_text(earlier)
    assert run(tmp_path).seen == ["a", "b", "c"], "nobody knows what b was made from"
    rows = {row[0]: row[1:] for row in table(tmp_path / "out" / "means.csv")}
    assert list(rows) == ["scan", "a", "b", "c", "old"]
    assert rows["old"] == ["0.2", "", "", ""] and rows["b"][0] == "0.5"


def test_other_columns_are_refused(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "means.csv").write_text("scan,other\nb,0.1\n")
    with pytest.raises(ValueError, match=r"has the columns \['scan', 'other'\], which must be this task's .*--output"):
        run(tmp_path)
    (tmp_path / "out" / "means.csv").write_text("")
    with pytest.raises(ValueError, match=r"has the columns \[\], which must be"):
        run(tmp_path)


def test_what_a_kill_left_is_removed(tmp_path):
    left = tmp_path / "out" / f".part-{HOST}-{2**22 + 1}-a_seg.nii.gz"  # above the highest number of a process
    left.parent.mkdir()
    left.touch()
    names = [
        ".123.volumes.csv",
        ".123.a b_seg.nii.gz",
        "a_seg.dcm.123.part",
        ".9.a_landmarks.mrk.json",
        ".9.b_features.npz",
    ]
    earlier = [tmp_path / "out" / name for name in names]
    kept = [tmp_path / "out" / name for name in (".notes.csv", "b.123.volumes.csv", ".123.notes.csv", "x.part")]
    for path in (*earlier, *kept):
        path.touch()
    run(tmp_path)
    assert not left.exists() and all(path.exists() for path in (*earlier, *kept)), "another run may be writing them"
    for path in (*earlier, *kept):
        os.utime(path, (1, 1))
    run(tmp_path)
    assert not any(path.exists() for path in earlier) and all(path.exists() for path in kept)


# --- runs of a bundle -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def hippocampi(tmp_path_factory):
    """Six scans."""
    return phantom.write(tmp_path_factory.mktemp("data") / "hippocampus", "hippocampus", cases=6) / "imagesTr"


def segment(bundle_run, source, folder, **options):
    return bundle_run("msd_seg", "inference", input=str(source), output_dir=str(folder), **options)


@pytest.mark.slow
def test_a_killed_run_goes_on_where_it_was(bundle_run, hippocampi, tmp_path, reliability):
    """A real process is killed after its second scan; the run after it does the rest, and leaves what is done alone."""
    out = tmp_path / "out"
    line = [sys.executable, "-m", "monai.bundle", "run", "--config_file"]
    line += [str(BUNDLES / "msd_seg/configs/inference.json"), "--input", str(hippocampi), "--output_dir", str(out)]
    line += ["--roi_size", "[32,32,32]", "--device", "$torch.device('cpu')"]
    with subprocess.Popen(line, env={**os.environ, "OMP_NUM_THREADS": "1"}, stderr=subprocess.PIPE) as process:
        until = time.monotonic() + 120
        while time.monotonic() < until and not (
            (out / "volumes.csv").is_file() and len(table(out / "volumes.csv")) > 2
        ):
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    done = [row[0] for row in table(out / "volumes.csv")[1:]]
    assert 2 <= len(done) < 6, "killed in the middle"
    at = {name: (out / f"{name}_seg.nii.gz").stat().st_mtime_ns for name in done}
    end = segment(bundle_run, hippocampi, out)
    found = f"{len(done)} of 6 scans are left out"
    reliability("Inference", "a run was killed, and is started again", end, warning=found, hide=r"^\d")
    assert "6 of 6 scans done" in end.log
    assert {name: (out / f"{name}_seg.nii.gz").stat().st_mtime_ns for name in done} == at
    assert not list(out.glob(".part-*")), "temporary files of the killed run"
    whole = segment(bundle_run, hippocampi, tmp_path / "whole")
    assert whole.status == 0
    assert table(out / "volumes.csv") == table(tmp_path / "whole" / "volumes.csv")
    for path in (tmp_path / "whole").glob("*_seg.nii.gz"):
        np.testing.assert_array_equal(nib.load(path).dataobj, nib.load(out / path.name).dataobj)


OTHERS = {
    "brain_cls": ("predictions.csv", {"spacing": [3.0, 3.0, 3.0], "input_size": [56, 68, 56], "width": 16}),
    "fetal_landmarks": (
        "biometry.csv",
        {"spacing": [2.5, 2.5, 2.5], "roi_size": [48, 48, 48], "sigma": 2.0, "width": 16},
    ),
    "pretrain": ("features.csv", {}),
}


@pytest.mark.parametrize("bundle", OTHERS)
def test_every_report_knows_what_is_done(bundle_run, hippocampi, tmp_path, monkeypatch, bundle):
    def doubtful(*args, **options):
        return [{**item, "warnings": ["look at this"]} for item in scans(*args, **options)]

    monkeypatch.setattr("mambamim_nets.bundle.scans", doubtful)
    name, options = OTHERS[bundle]
    scan = sorted(hippocampi.iterdir())[0]
    if bundle == "fetal_landmarks":  # refuses what is no head
        head = phantom.make("fetal", 5)
        scan = tmp_path / "head.nii.gz"
        nib.save(nib.Nifti1Image(head.image, head.affine), scan)
    options = {**options, "input": str(scan), "output_dir": str(tmp_path / "out")}
    first = bundle_run(bundle, "inference", **options)
    assert first.status == 0 and "1 of 1 scans done" in first.log, first.log[-2000:]
    header, row = table(tmp_path / "out" / name)
    assert header[-3:] == ["warnings", "weights", "made from"] and len(row) == len(header)
    assert row[-3] == "look at this" and row[-2]
    second = bundle_run(bundle, "inference", **options)
    assert second.status == 0 and "1 of 1 scans are left out" in second.log
    assert table(tmp_path / "out" / name) == [header, row]
    assert "left out" not in bundle_run(bundle, "inference", overwrite=True, **options).log


def test_a_folder_with_the_table_of_another_task(bundle_run, hippocampi, tmp_path, reliability):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "volumes.csv").write_text("scan,liver (ml)\nx,1\n")
    end = segment(bundle_run, hippocampi, tmp_path / "out")
    reliability("Inference", "the output folder has the table of another task", end)
    assert not list((tmp_path / "out").glob("*_seg*"))


@pytest.mark.slow
def test_a_second_run_in_the_folder_of_a_running_one(bundle_run, hippocampi, tmp_path, reliability):
    out = tmp_path / "out"
    code = "import sys, time\nfrom mambamim_nets.bundle.files import only_run\n"
    code += "only_run(sys.argv[1], 'inference')\nprint('held', flush=True)\ntime.sleep(600)"
    with subprocess.Popen([sys.executable, "-c", code, str(out)], stdout=subprocess.PIPE) as other:
        assert other.stdout is not None and other.stdout.readline() == b"held\n"
        end = segment(bundle_run, hippocampi, out)
        other.kill()
    hide = r"process \d+ on \S+(?=\))"
    reliability("Inference", "a second run into the folder of a running one", end, hide=hide)
    assert not list(out.glob("*.csv"))
    only_run(out, "inference")  # the lock of a killed process holds nobody up
    release(out, "inference")


@pytest.mark.slow
def test_the_settings_of_a_result(bundle_run, hippocampi, tmp_path, monkeypatch):
    """Those that may change it, and nothing of where it comes from and goes to."""
    seen = []
    monkeypatch.setattr(
        "mambamim_nets.bundle.handlers.scan_results._settings", lambda: seen.append(_settings()) or seen[-1]
    )
    scan = sorted(hippocampi.iterdir())[0]
    assert segment(bundle_run, scan, tmp_path / "a").status == 0
    moved = shutil.copy(scan, tmp_path / "moved.nii.gz")
    free = {"sw_batch_size": 1, "previews": False, "overwrite": True, "max_gib": 1.0}
    assert segment(bundle_run, moved, tmp_path / "b", **free).status == 0
    assert seen[0] == seen[1]
    assert {"overlap", "roi_size", "spacing", "keep_largest", "assume_axes", "network_def#size"} <= set(seen[0])
    assert segment(bundle_run, scan, tmp_path / "c", **{"inferer::overlap": 0.25}).status == 0
    assert seen[2] != seen[0]


@pytest.mark.slow
def test_a_scan_of_an_older_table(bundle_run, hippocampi, tmp_path, reliability):
    out, scan = tmp_path / "out", sorted(hippocampi.iterdir())[0]
    assert segment(bundle_run, scan, out).status == 0
    again = segment(bundle_run, scan, out, overlap=0.25)
    assert again.status == 0 and "left out" not in again.log, "another overlap makes another result"
    once_more = segment(bundle_run, scan, out, overlap=0.25, previews=False)
    warning = "1 of 1 scans are left out"
    reliability("Inference", "all scans were done by an earlier run", once_more, warning=warning)


def test_overwrite_that_is_no_switch(bundle_run, hippocampi, tmp_path, reliability):
    end = segment(bundle_run, sorted(hippocampi.iterdir())[0], tmp_path / "out", overwrite="maybe")
    reliability("Inference", "--overwrite is neither true nor false", end)
    assert not list((tmp_path / "out").glob("*.csv"))
