"""The embedded synthetic data: determinism, anatomy in world coordinates, and a folder that is whole or not there."""

import json
import threading

import nibabel as nib
import numpy as np
import pytest
from monai.data import load_decathlon_datalist

from mambamim_nets import phantom
from mambamim_nets.phantom import dataset, fetal, render

SMALL = {kind: (56, 48, 48) for kind in phantom.KINDS} | {"hippocampus": (36, 50, 34)}


@pytest.fixture(scope="module")
def bodies():
    return [phantom.make("abdomen", seed) for seed in (0, 1, 2)]


@pytest.fixture(scope="module")
def tall():
    """AMOS-like subjects by seed; 4 and 9 are MR-like."""
    return {seed: phantom.make("amos", seed) for seed in (0, 1, 2, 3, 4, 9)}


def centre(subject, name, kind="abdomen"):
    """Centroid of an organ in RAS mm."""
    value = next(v for v, n in phantom.LABELS[kind].items() if n == name)
    return nib.affines.apply_affine(subject.affine, np.argwhere(subject.label == value).mean(0))


def millilitres(subject, value):
    return (subject.label == value).sum() * abs(np.linalg.det(subject.affine[:3, :3])) / 1000


@pytest.mark.parametrize("kind", phantom.KINDS)
def test_same_arguments_give_the_same_subject_and_seeds_differ(kind):
    first, again, other = (phantom.make(kind, seed, SMALL[kind]) for seed in (3, 3, 4))
    for a, b in zip(first, again, strict=True):
        np.testing.assert_array_equal(a, b)
    assert (first.label != other.label).any()
    assert np.abs(first.image - other.image).mean() > 0.05 * np.abs(first.image).mean()


@pytest.mark.parametrize("kind", phantom.KINDS)
def test_arrays_are_float32_uint8_and_ras(kind):
    image, label, affine = phantom.make(kind, 0, SMALL[kind])
    channels = len(phantom.MODALITIES[kind])
    assert image.dtype == np.float32 and label.dtype == np.uint8 and affine.dtype == np.float64
    assert label.shape == SMALL[kind] and image.shape == SMALL[kind] + ((channels,) if channels > 1 else ())
    assert nib.aff2axcodes(affine) == ("R", "A", "S")
    assert np.isfinite(image).all() and set(np.unique(label)) <= {0, *phantom.LABELS[kind]}
    np.testing.assert_allclose(affine[:3, :3] @ ((np.array(label.shape) - 1) / 2) + affine[:3, 3], 0, atol=1e-9)


@pytest.mark.parametrize("kind", [kind for kind in phantom.KINDS if kind != "abdomen"])
def test_every_label_is_in_every_subject(kind):
    for seed in range(3):
        assert set(np.unique(phantom.make(kind, seed).label)) == {0, *phantom.LABELS[kind]}


def test_abdomen_has_thirteen_organs_of_plausible_size(bodies):
    for body in bodies:
        volume = {name: millilitres(body, value) for value, name in phantom.LABELS["abdomen"].items()}
        assert min(volume.values()) > 0.8
        assert max(volume, key=volume.get) == "liver" and 600 < volume["liver"] < 2200
        assert 60 < volume["left kidney"] < 250 and 60 < volume["right kidney"] < 250 and 60 < volume["spleen"] < 400


def test_organs_lie_where_anatomy_has_them(bodies):
    right, front, up = 0, 1, 2
    for body in bodies:
        at = {name: centre(body, name) for name in phantom.LABELS["abdomen"].values()}
        assert at["liver"][right] > 30 > -30 > at["spleen"][right]
        assert at["right kidney"][right] > 25 > -25 > at["left kidney"][right]
        assert at["right kidney"][up] < at["left kidney"][up]
        assert at["aorta"][right] < at["inferior vena cava"][right]
        assert at["stomach"][right] < 0 < at["gallbladder"][right]
        assert at["gallbladder"][front] > at["right kidney"][front]
        for side in ("right", "left"):
            assert at[f"{side} adrenal gland"][up] > at[f"{side} kidney"][up]
        assert at["oesophagus"][up] > max(position[up] for name, position in at.items() if name != "oesophagus")


def test_ct_values_are_ordered_as_in_the_portal_phase(bodies):
    for image, label, _ in bodies:
        mean = {name: image[label == value].mean() for value, name in phantom.LABELS["abdomen"].items()}
        assert image.min() < -950 and np.median(image[:, :, 0][:4]) < -900
        assert mean["gallbladder"] < mean["liver"] < mean["left kidney"]
        assert mean["pancreas"] < mean["spleen"] < mean["aorta"]
        assert 60 < mean["liver"] < 160
        np.testing.assert_array_equal(image, image.astype(np.int16))


def test_brain_is_stripped_and_its_channels_show_the_tumour_as_named():
    image, label, _ = phantom.make("brain", 1)
    flair, t1ce, t1, t2 = np.moveaxis(image, -1, 0)
    outside = (image == 0).all(-1)
    assert 0.4 < outside.mean() < 0.9 and not label[outside].any()
    healthy = ~outside & (label == 0)
    assert flair[label == 2].mean() > 1.3 * np.median(flair[healthy])
    assert t1ce[label == 4].mean() > 1.3 * np.median(t1ce[healthy])
    assert t1[label == 1].mean() < 0.8 * np.median(t1[healthy])
    assert t2[label == 1].mean() > 1.3 * np.median(t2[healthy])


def test_hippocampus_crops_vary_and_anterior_is_in_front():
    subjects = [phantom.make("hippocampus", seed) for seed in range(6)]
    assert len({s.label.shape for s in subjects}) > 3
    assert max(s.image.mean() for s in subjects) > 2 * min(s.image.mean() for s in subjects)
    for s in subjects:
        assert all(low <= n <= high for n, low, high in zip(s.label.shape, (31, 40, 24), (43, 59, 47), strict=True))
        assert centre(s, "anterior", "hippocampus")[1] > centre(s, "posterior", "hippocampus")[1] + 10
        assert all(0.9 < millilitres(s, value) < 2.8 for value in (1, 2))


def test_amos_has_fifteen_organs_of_plausible_size_from_lung_to_hip(tall):
    ranges = {
        "spleen": (60, 400), "right kidney": (60, 250), "left kidney": (60, 250), "gallbladder": (5, 60),
        "oesophagus": (5, 40), "liver": (600, 2200), "stomach": (100, 600), "aorta": (40, 160),
        "inferior vena cava": (40, 160), "pancreas": (25, 120), "right adrenal gland": (0.8, 6),
        "left adrenal gland": (0.8, 6), "duodenum": (20, 120), "urinary bladder": (25, 450),
        "prostate or uterus": (12, 180),
    }  # fmt: skip
    assert list(ranges) == list(phantom.LABELS["amos"].values())
    for body in tall.values():
        assert 380 < body.label.shape[2] * body.affine[2, 2] < 430
        for value, name in phantom.LABELS["amos"].items():
            low, high = ranges[name]
            assert low < millilitres(body, value) < high, name


def test_amos_organs_lie_where_anatomy_has_them(tall):
    right, front, up = 0, 1, 2
    for body in tall.values():
        at = {name: centre(body, name, "amos") for name in phantom.LABELS["amos"].values()}
        assert abs(at["urinary bladder"][right]) < 20 and abs(at["prostate or uterus"][right]) < 20
        assert at["urinary bladder"][front] > at["prostate or uterus"][front]
        pelvic = ("urinary bladder", "prostate or uterus")
        assert max(at[name][up] for name in pelvic) + 100 < min(at[n][up] for n in at if n not in pelvic)
        assert at["left kidney"][right] < at["duodenum"][right] < at["liver"][right]
        assert at["duodenum"][up] < at["pancreas"][up] < at["oesophagus"][up]
        aorta = np.flatnonzero((body.label == 8).any((0, 1)))
        fork, kidneys = aorta[0], np.flatnonzero(np.isin(body.label, (2, 3)).any((0, 1)))
        assert fork < kidneys[0] and fork * body.affine[2, 2] > 140  # it ends above the pelvis


def test_every_fifth_amos_subject_is_like_mr_and_the_others_are_in_hu(tall):
    livers = []
    for seed, (image, label, _) in tall.items():
        mean = {name: image[label == value].mean() for value, name in phantom.LABELS["amos"].items()}
        np.testing.assert_array_equal(image, image.astype(np.int16))
        if seed % 5 == 4:
            assert image.min() >= 0 and mean["aorta"] < mean["liver"] and mean["pancreas"] > mean["spleen"]
            livers.append(mean["liver"])
        else:
            assert image.min() < -950 and 60 < mean["liver"] < 160 and mean["pancreas"] < mean["aorta"]
    assert max(livers) > 1.5 * min(livers)  # arbitrary units


def test_default_amos_data_set_holds_ct_and_mr_like_training_cases():
    seeds = [int(np.random.SeedSequence([0, case]).generate_state(1)[0]) for case in range(10)]
    assert 1 <= sum(render.is_mr("amos", seed) for seed in seeds) <= 4
    assert not any(render.is_mr(kind, 4) for kind in phantom.KINDS if kind != "amos")


def test_duodenum_is_bowel_where_it_is_not_labelled(bodies):
    assert "duodenum" not in phantom.tissues("abdomen", 0, 5).names
    assert 13 == max(phantom.LABELS["abdomen"]) == max(np.unique(body.label).max() for body in bodies)


@pytest.mark.parametrize("kind", phantom.KINDS)
def test_tissues_are_what_make_paints_its_intensities_on(kind):
    spacing = 1.5 if kind == "hippocampus" else 5
    for seed in (3, 4):
        subject, (tissue, names, label, affine) = (
            build(kind, seed, spacing=spacing) for build in (phantom.make, phantom.tissues)
        )
        np.testing.assert_array_equal(label, subject.label)
        np.testing.assert_array_equal(affine, subject.affine)
        assert tissue.dtype == np.uint8 and sorted(names.values()) == list(range(len(names)))
        assert set(np.unique(tissue)) <= set(names.values())
        assert all(
            len(np.unique(label[tissue == value])) == 1 for value in np.unique(tissue)
        )  # a label is whole tissues
        image = np.moveaxis(subject.image, -1, 0) if subject.image.ndim == 4 else subject.image[None]
        for channel in image:  # tissues explain the image
            means = np.bincount(tissue.ravel(), channel.ravel()) / np.maximum(np.bincount(tissue.ravel()), 1)
            assert np.corrcoef(means[tissue].ravel(), channel.ravel())[0, 1] > 0.85
    with pytest.raises(ValueError, match="choose one of abdomen"):
        phantom.tissues("knee", 0)


def test_shape_and_spacing_sample_the_same_anatomy():
    coarse = phantom.make("spleen", 0, spacing=5)
    assert coarse.label.shape == (63, 54, 54)
    fine = phantom.make("spleen", 0, shape=(100, 90, 80))
    np.testing.assert_allclose(millilitres(coarse, 1), millilitres(fine, 1), rtol=0.05)
    np.testing.assert_allclose(centre(coarse, "spleen", "spleen"), centre(fine, "spleen", "spleen"), atol=1.5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        pytest.param({"kind": "knee"}, "choose one of abdomen", id="kind"),
        pytest.param({"kind": "abdomen", "shape": (8, 96, 96)}, "32 to 512", id="shape-small"),
        pytest.param({"kind": "brain", "shape": (64, 64)}, "three axes", id="shape-2d"),
        pytest.param({"kind": "abdomen", "spacing": (3, 0, 3)}, "spacing", id="spacing-zero"),
        pytest.param({"kind": "abdomen", "spacing": 0.3}, "512", id="too-large"),
        pytest.param({"kind": "abdomen", "seed": -1}, "seed -1", id="seed"),
    ],
)
def test_make_refuses_absurd_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        phantom.make(**{"seed": 0} | arguments)


@pytest.mark.parametrize("kind", phantom.KINDS)
def test_written_folder_is_a_decathlon_data_set(tmp_path, kind):
    folder = phantom.write(tmp_path / "data" / kind, kind, cases=2, shape=SMALL[kind])
    listing = json.loads((folder / "dataset.json").read_text())
    assert "synthetic" in listing["description"] and "not patient data" in listing["description"]
    assert listing["licence"] == "CC0-1.0" and listing["numTraining"] == 2 and listing["name"] == f"Phantom-{kind}"
    assert listing["labels"] == {"0": "background"} | {str(v): n for v, n in phantom.LABELS[kind].items()}
    training = load_decathlon_datalist(folder / "dataset.json", data_list_key="training")
    assert len(training) == 2 and len(load_decathlon_datalist(folder / "dataset.json", data_list_key="test")) == 2
    image, label = nib.load(training[0]["image"]), nib.load(training[0]["label"])
    assert image.get_data_dtype() == (np.int16 if phantom.MODALITIES[kind][0].startswith("CT") else np.float32)
    assert label.get_data_dtype() == np.uint8 and image.header["qform_code"] == image.header["sform_code"] == 1
    assert image.shape[:3] == label.shape == SMALL[kind] and image.header.get_xyzt_units()[0] == "mm"
    np.testing.assert_allclose(image.affine, label.affine)
    assert [path.name for path in folder.parent.iterdir()] == [kind]


def test_second_write_reuses_and_another_request_is_refused(tmp_path, caplog):
    folder = tmp_path / "spleen"
    with caplog.at_level("INFO", logger="mambamim_nets.phantom"):
        phantom.write(folder, "spleen", cases=1, shape=SMALL["spleen"])
        before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
        phantom.write(folder, "spleen", cases=1, shape=SMALL["spleen"])
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before
    assert [("writing" in text, "reusing" in text) for text in caplog.messages] == [(True, False), (False, True)]
    assert all("synthetic" in text and str(folder) in text for text in caplog.messages)
    for other in ({"cases": 2}, {"seed": 1}, {"shape": (60, 48, 48)}):
        with pytest.raises(FileExistsError, match="name another"):
            phantom.write(folder, "spleen", **{"cases": 1, "shape": SMALL["spleen"]} | other)
    (folder / "labelsTr" / "phantom_000.nii.gz").unlink()
    with pytest.raises(FileExistsError, match=r"lacks ./labelsTr/phantom_000"):
        phantom.write(folder, "spleen", cases=1, shape=SMALL["spleen"])


@pytest.mark.parametrize(
    "content", [{"notes.txt": "mine"}, {"dataset.json": '{"training": []}'}, {"dataset.json": "[]"}]
)
def test_foreign_folder_is_refused_and_left_alone(tmp_path, content):
    for name, text in content.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(FileExistsError, match="name a new folder"):
        phantom.write(tmp_path, "spleen", cases=1, shape=SMALL["spleen"])
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == content


def test_interrupted_write_leaves_nothing(tmp_path, monkeypatch):
    calls = iter(range(9))

    def interrupted(*arguments):
        if next(calls) == 2:
            raise KeyboardInterrupt
        return original(*arguments)

    original = phantom.make
    monkeypatch.setattr(dataset, "make", interrupted)
    with pytest.raises(KeyboardInterrupt):
        phantom.write(tmp_path / "spleen", "spleen", cases=3, shape=SMALL["spleen"])
    assert list(tmp_path.iterdir()) == []


def test_concurrent_writers_agree_on_one_data_set(tmp_path, monkeypatch):
    barrier, results, original = threading.Barrier(2), [], dataset._build

    def build(*arguments):
        original(*arguments)
        barrier.wait(timeout=60)  # both are about to publish

    monkeypatch.setattr(dataset, "_build", build)

    def writer():
        results.append(phantom.write(tmp_path / "spleen", "spleen", cases=1, shape=SMALL["spleen"]))

    threads = [threading.Thread(target=writer) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [tmp_path / "spleen"] * 2
    assert [path.name for path in tmp_path.iterdir()] == ["spleen"]
    assert len(list((tmp_path / "spleen").rglob("*.nii.gz"))) == 4


def test_empty_folder_is_filled_and_cases_must_be_positive(tmp_path):
    assert (phantom.write(tmp_path, "hippocampus", cases=1) / "dataset.json").is_file()
    with pytest.raises(ValueError, match="cases 0"):
        phantom.write(tmp_path, "hippocampus", cases=0)


def test_points_of_fetal_heads_are_the_ends_of_what_is_painted():
    for seed in range(2):
        edge = 1.4  # a voxel's, by which the painted end may miss the exact one
        subject, points = phantom.make("fetal", seed, spacing=edge), phantom.landmarks("fetal", seed)
        assert tuple(points) == fetal.POINTS
        ends = {1: [("TCD_start", "TCD_end")], 2: [("HDV_start", "HDV_end"), ("ADV_start", "ADV_end")]}
        for value, pairs in ends.items():
            voxels = nib.affines.apply_affine(subject.affine, np.argwhere(subject.label == value))
            for start, end in pairs:
                along = (points[start] - points[end]) / np.linalg.norm(points[start] - points[end])
                reach = voxels @ along
                np.testing.assert_allclose(
                    (reach.max(), reach.min()), (points[start] @ along, points[end] @ along), atol=edge
                )
        right, front, up = np.eye(3)
        for pair, axis in (("TCD", right), ("ADV", front), ("HDV", up)):  # turned by 30 degrees, tilted by 12
            assert (points[f"{pair}_start"] - points[f"{pair}_end"]) @ axis > 0
        assert 20 < np.linalg.norm(points["TCD_start"] - points["TCD_end"]) < 45
    poses = [fetal.draw(np.random.default_rng(seed)).rotation for seed in range(20)]
    assert max(np.arccos((np.trace(pose) - 1) / 2) for pose in poses) > np.deg2rad(15)
    assert phantom.landmarks("abdomen", 0) == {}


def test_written_points_are_those_of_the_subjects(tmp_path):
    folder = phantom.write(tmp_path / "heads", "fetal", cases=2, spacing=5)
    header, *rows = (folder / "landmarks.csv").read_text().splitlines()
    assert header == "case,name,x,y,z,frame" and len(rows) == 4 * 6, "of new subjects too"
    seed = int(np.random.SeedSequence([0, 3]).generate_state(1)[0])
    case, name, *place, frame = rows[-1].split(",")
    assert (case, name, frame) == ("phantom_003", "ADV_end", "RAS")
    np.testing.assert_allclose([float(mm) for mm in place], phantom.landmarks("fetal", seed)[name], atol=1e-4)
