"""Data sets that hold one image twice, or name files outside of their folder: refused by name before training."""

import json
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

pytestmark = pytest.mark.usefixtures("all_narrow")

LISTED = {  # fault -> what the first entry of dataset.json becomes, and what the last line must say
    "a case named ../../../evil": ({"case": "../../../evil"}, "case name '../../../evil' must have no slash"),
    "a case named by an absolute path": ({"case": "/tmp/evil"}, "must have no slash or backslash"),
    "a case named with a backslash": ({"case": "..\\evil"}, "must have no slash or backslash"),
    "a case without a name": ({"case": ""}, "case name '' must be text that is not empty"),
    "a case whose name is null": ({"case": None}, "case name None must be text"),
    "a case name with a NUL character": ({"case": "a\0b"}, "must have printable characters only"),
    "a case name with a line break": ({"case": "a\nb"}, "must have printable characters only"),
    "a case name that starts with a dot": ({"case": ".evil"}, "must neither start nor end with a dot"),
    "a case name of 300 characters": ({"case": "x" * 300}, "must have at most 200 bytes, and has 300"),
    "a case name that Windows reserves": ({"case": "NUL"}, "must not be a name that Windows reserves"),
    "an image outside of the data set": ({"image": "../../private.nii.gz"}, "'../../private.nii.gz' must stay inside"),
    "a label at an absolute path": ({"label": "/etc/hosts"}, "path '/etc/hosts' must stay inside"),
    "an image path with a NUL character": ({"image": "a\0.nii.gz"}, "must be the name of a file"),
    "an image that is a number": ({"image": 7}, "must have as 'image' a path or a list of them"),
    "an image that is an empty list": ({"image": []}, "must have as 'image' a path or a list of them"),
}


@pytest.fixture
def copied(data, tmp_path):
    return Path(shutil.copytree(data, tmp_path / "data"))


def relist(folder, change):
    path = folder / "dataset.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def resaved(source, target):
    """Save an image again, so that its file differs: not compressed, as float32, with another origin."""
    image = nib.load(source)
    affine = image.affine.copy()
    affine[:3, 3] += 5
    nib.save(nib.Nifti1Image(np.asarray(image.dataobj, np.float32), affine), target)


def train(bundle_run, folder, **options):
    return bundle_run("msd_seg", dataset_dir=str(folder), max_epochs=1, **options)


@pytest.mark.parametrize("fault", LISTED)
def test_a_list_may_not_leave_its_folder(bundle_run, reliability, copied, tmp_path, fault):
    change, words = LISTED[fault]
    relist(copied, lambda content: content["training"][0].update(change))
    outcome = train(bundle_run, copied)
    assert words in outcome.last and "dataset.json" in outcome.last
    assert not list(tmp_path.rglob("*evil*")) and not list((tmp_path / "out").glob("*.pt"))
    reliability("Data sets", fault, outcome)


@pytest.mark.parametrize("how", ["saved again", "linked", "listed twice"])
def test_one_image_as_two_cases(bundle_run, reliability, copied, how):
    entry = json.loads((copied / "dataset.json").read_text())["training"][0]
    again = {**entry, "case": "another"}
    if how == "saved again":
        again |= {"image": "again.nii", "label": "label.nii"}
        for key in ("image", "label"):
            resaved(copied / entry[key], copied / again[key])
    elif how == "linked":
        again |= {"image": "link.nii.gz"}
        (copied / "link.nii.gz").symlink_to(copied / entry["image"])
    relist(copied, lambda content: content["training"].append(again))
    outcome = train(bundle_run, copied)
    assert "must be different images, or one would train and validate" in outcome.last
    reliability("Data sets", f"one image as two cases, {how}", outcome)


@pytest.mark.slow
def test_a_training_image_that_is_tested_too(bundle_run, reliability, copied):
    content = json.loads((copied / "dataset.json").read_text())
    shutil.copy(copied / content["training"][0]["image"], copied / "tested.nii.gz")
    relist(copied, lambda content: content.update(test=["tested.nii.gz"]))
    outcome = train(bundle_run, copied, train_cases=1, roi_size=[16, 16, 16], overlap=0.0)
    reliability("Data sets", "a labelled image that is in 'test' too", outcome, warning="'test' has images of labelled")


# --- classification -------------------------------------------------------------------------------

ROWS = {
    "subjects.csv: an image outside of its folder": ({"image": "../../private.nii.gz"}, "must stay inside"),
    "subjects.csv: an image at an absolute path": ({"image": "/etc/hosts"}, "must stay inside"),
    "subjects.csv: a subject named ../../evil": ({"subject": "../../evil"}, "must have no slash or backslash"),
    "subjects.csv: a subject of 300 characters": ({"subject": "x" * 300}, "must have at most 200 bytes"),
}


@pytest.fixture
def scanned(tmp_path):
    """Return a function that writes a table of 12 subjects with one image each, the first row changed."""

    def write(change, copy=False):
        folder = tmp_path / "data"
        folder.mkdir()
        rows = []
        for number in range(12):
            noise = np.random.default_rng(number).random((8, 8, 8), np.float32)
            nib.save(nib.Nifti1Image(noise, np.eye(4)), folder / f"{number}.nii.gz")
            rows.append({"subject": f"s{number}", "image": f"{number}.nii.gz", "diagnosis": ("NC", "AD")[number % 2]})
        if copy:
            resaved(folder / "0.nii.gz", folder / "7.nii")
            rows[7]["image"] = "7.nii"
        rows[0] |= change
        lines = [",".join(row.values()) for row in rows]
        (folder / "subjects.csv").write_text("\n".join(["subject,image,diagnosis", *lines]) + "\n")
        return str(folder)

    return write


@pytest.mark.parametrize("fault", ROWS)
def test_a_table_may_not_leave_its_folder(bundle_run, reliability, scanned, fault):
    change, words = ROWS[fault]
    outcome = bundle_run("brain_cls", dataset_dir=scanned(change), max_epochs=1)
    assert words in outcome.last and "subjects.csv: line 2: " in outcome.last
    reliability("Data sets", fault, outcome)


def test_one_scan_of_two_subjects(bundle_run, reliability, scanned):
    outcome = bundle_run("brain_cls", dataset_dir=scanned({}, copy=True), max_epochs=1)
    assert "cases s0 and s7 must be different images" in outcome.last
    reliability("Data sets", "subjects.csv: one image of two subjects, saved again", outcome)


# --- landmarks ------------------------------------------------------------------------------------


@pytest.fixture
def heads(data_of, tmp_path):
    return Path(shutil.copytree(data_of("fetal_landmarks"), tmp_path / "data"))


MARKED = {
    "landmarks: an image outside of the data set": ({"image": "../../private.nii.gz"}, "must stay inside"),
    "landmarks: a file of points outside of the data set": ({"landmarks": "../../x.csv"}, "must stay inside"),
    "landmarks: a case named ../../evil": ({"case": "../../evil"}, "must have no slash or backslash"),
    "landmarks: points in something that is no path": (
        {"landmarks": ["a.csv"]},
        "must have as 'landmarks' the path of a file",
    ),
}


@pytest.mark.parametrize("fault", MARKED)
def test_a_list_of_landmarks_may_not_leave_its_folder(bundle_run, reliability, heads, fault):
    change, words = MARKED[fault]
    relist(heads, lambda content: content["training"][0].update(change))
    outcome = bundle_run("fetal_landmarks", dataset_dir=str(heads), max_epochs=1)
    assert words in outcome.last
    reliability("Data sets", fault, outcome)


def test_a_table_of_landmarks_may_not_leave_its_folder(bundle_run, reliability, heads):
    (heads / "dataset.json").unlink()
    table = heads / "landmarks.csv"
    table.write_text(table.read_text().replace("phantom_000", "../../private"))
    outcome = bundle_run("fetal_landmarks", dataset_dir=str(heads), max_epochs=1)
    assert "case name '../../private' must have no slash" in outcome.last
    reliability("Data sets", "landmarks.csv: a case named ../../private", outcome)


def test_one_image_with_two_sets_of_points(bundle_run, reliability, heads):
    def again(content):
        entry = content["training"][0]
        content["training"].append({**entry, "case": "another", "landmarks": "points.csv"})

    lines = (heads / "landmarks.csv").read_text().splitlines()
    kept = [line.replace("phantom_000", "another") for line in lines if line == lines[0] or "phantom_000" in line]
    (heads / "points.csv").write_text("\n".join(kept) + "\n")
    relist(heads, again)
    outcome = bundle_run("fetal_landmarks", dataset_dir=str(heads), max_epochs=1)
    assert "another" in outcome.last and "must be different images" in outcome.last
    reliability("Data sets", "landmarks: one image as two cases", outcome)


# --- pre-training ---------------------------------------------------------------------------------


def test_a_held_out_image_under_another_name(bundle_run, reliability, copied):
    images = sorted(path.name for path in (copied / "imagesTr").glob("*.nii.gz"))
    names = [name.removesuffix(".nii.gz") for name in images]
    (copied / "folds.json").write_text(json.dumps([names[:1], [*names[1:], "again"]]))
    resaved(copied / "imagesTr" / images[0], copied / "again.nii")
    options = {"fold_file": str(copied / "folds.json"), "hold_out_fold": 0, "max_epochs": 1}
    sources = [str(copied / "imagesTr"), str(copied / "again.nii")]
    outcome = bundle_run("pretrain", sources=sources, **options)
    assert "1 images of the held-out fold are in the sources" in outcome.last
    reliability("Pre-training", "an image of the held-out fold under another name", outcome)


def test_one_image_in_two_sources(bundle_run, reliability, copied):
    image = next((copied / "imagesTr").glob("*.nii.gz"))
    resaved(image, copied / "again.nii")
    sources = [str(copied / "imagesTr"), str(copied / "again.nii")]
    outcome = bundle_run("pretrain", sources=sources, max_epochs=1, roi_size=[16, 32, 32], batch_size=7)
    reliability("Pre-training", "one image in two sources", outcome, warning="images are in the sources more than once")


@pytest.mark.parametrize(("fault", "image"), [("a NUL character", "a\0.nii.gz"), ("no name", " ")])
def test_a_list_of_images_with_something_that_is_no_path(bundle_run, reliability, copied, fault, image):
    (copied / "list.json").write_text(json.dumps([{"image": image}]))
    outcome = bundle_run("pretrain", sources=[str(copied / "list.json")], max_epochs=1)
    assert "must name files" in outcome.last
    reliability("Pre-training", f"a list of images that has a path with {fault}", outcome)
