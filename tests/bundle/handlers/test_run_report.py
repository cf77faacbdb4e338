"""report.json and report.html say what a run did, whole at any time, and keep what earlier runs did."""

import hashlib
import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from mambamim_nets import phantom
from mambamim_nets.bundle.handlers import run_report
from mambamim_nets.bundle.handlers.run_report import RunReport

SMALL = {"roi_size": [32, 32, 32], "overlap": 0.0}


@pytest.fixture(scope="module")
def scans(tmp_path_factory):
    """Two scans and a broken file."""
    folder = phantom.write(tmp_path_factory.mktemp("data") / "hippocampus", "hippocampus", cases=5) / "imagesTr"
    for path in sorted(folder.iterdir())[2:]:
        path.unlink()
    (folder / "broken.nii.gz").write_bytes(b"no image")
    return folder


def infer(bundle_run, source, out, **options):
    return bundle_run("msd_seg", "inference", input=str(source), output_dir=str(out), **{**SMALL, **options})


def report(out):
    return json.loads((out / "report.json").read_text())


def test_a_run_is_reported_and_kept_through_the_next_one(bundle_run, scans, tmp_path):
    out, names = tmp_path / "out", sorted(path.name.removesuffix(".nii.gz") for path in scans.glob("phantom*"))
    assert infer(bundle_run, scans / f"{names[0]}.nii.gz", out).status == 0
    first = report(out)
    (run,) = first["runs"].values()
    assert run["settings"]["overlap"] == 0.0 and run["settings"]["roi_size"] == [32, 32, 32]
    assert run["bundle"]["version"] and run["versions"].keys() >= {"torch", "monai", "mambamim_nets", "python"}
    weights = run["weights"]
    ((path, digest),) = weights["sha256"].items()
    assert digest == hashlib.sha256(Path(path).read_bytes()).hexdigest() and weights["note"]
    assert run["started"] <= run["ended"] and run["machine"]["device"] == "cpu"
    entry = first["scans"][names[0]]
    content = (scans / f"{names[0]}.nii.gz").read_bytes()
    assert entry["input"]["sha256"] == hashlib.sha256(content).hexdigest() and entry["input"]["files"] == 1
    assert entry["outcome"] == "done" and set(entry["seconds"]) == {"load", "compute", "write"}
    assert all(value > 0 for value in entry["seconds"].values()) and entry["peak_mib"]["process"] > 50
    assert entry["files"] == [f"{names[0]}_seg.nii.gz", f"{names[0]}_preview.png"]

    label = np.asarray(nib.load(out / f"{names[0]}_seg.nii.gz").dataobj)
    image = nib.load(scans / f"{names[0]}.nii.gz").get_fdata()
    assert (label == 1).any()
    for name, value in (("mean", image[label == 1].mean()), ("s.d.", image[label == 1].std())):
        assert float(entry["results"][f"anterior {name}"]) == pytest.approx(value, rel=1e-4)

    end = infer(bundle_run, scans, out)
    assert end.status == 1 and "1 of 3 scans are left out" in end.log
    second = report(out)
    assert second["scans"][names[0]] == entry, "as the first run left it"
    assert [second["scans"][name]["run"] for name in sorted(second["scans"])] == ["2", "1", "2"]
    assert second["runs"]["1"] == run and second["scans"]["broken"]["outcome"] == "failed"
    assert second["scans"]["broken"]["reason"] in end.last

    page = (out / "report.html").read_text()
    assert page.count("data:image/jpeg") == 2 and "2 of 3 scans done" in page and weights["note"] in page
    assert "anterior (ml)" in page and "anterior mean" not in page
    infer(bundle_run, scans / f"{names[0]}.nii.gz", out, overwrite=True)
    assert set(report(out)["runs"]) == {"2", "3"}, "of the first run nothing is left"
    assert report(out)["scans"][names[1]] == second["scans"][names[1]]


def test_an_interrupted_run_has_reported_what_is_done(bundle_run, scans, tmp_path, monkeypatch):
    out, scan = tmp_path / "out", RunReport.scan

    def stop(self, *args, **facts):
        scan(self, *args, **facts)
        raise KeyboardInterrupt

    monkeypatch.setattr(RunReport, "scan", stop)
    with pytest.raises(KeyboardInterrupt):
        infer(bundle_run, scans, out)
    assert len(report(out)["scans"]) == 1 and report(out)["runs"]["1"]["ended"] is None
    assert not list(out.glob(".part*")) and not (out / "report.html").exists()


def test_a_report_of_others_is_refused(bundle_run, scans, tmp_path, reliability):
    (tmp_path / "report.json").write_text("[]")
    with pytest.raises(ValueError, match=r"report\.json is no report of inference; move it, or give another --output"):
        RunReport(tmp_path)
    end = infer(bundle_run, scans, tmp_path)
    reliability("Inference", "the output folder has a report.json of something else", end)
    (tmp_path / "report.json").write_text("{")
    with pytest.raises(ValueError, match="is not valid JSON"):
        RunReport(tmp_path)


def test_a_page_holds_so_many_pictures_and_links_the_others(tmp_path, monkeypatch):
    monkeypatch.setattr(run_report, "MOST_PICTURES", 1)
    made = RunReport(tmp_path)
    made.start(None, "cpu", [])
    (tmp_path / "in.nii").write_bytes(b"x" * 10)
    for name in "ab":
        Image.new("RGBA", (2000, 500), (255, 0, 0, 255)).save(tmp_path / f"{name}_preview.png")
        item = {"image": str(tmp_path / "in.nii"), "series": None}
        made.scan(name, item, "done", files=[f"{name}_preview.png", f"{name}.txt"], results={})
    made.end()
    page = (tmp_path / "report.html").read_text()
    assert page.count("data:image/jpeg") == 1 and 'href="b_preview.png"' in page and len(page) < 30_000
