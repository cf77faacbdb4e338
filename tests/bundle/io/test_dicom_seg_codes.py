"""What each label is in a DICOM-SEG: codes of the bundles' metadata, and those of a file written with them."""

import json
import logging
from pathlib import Path

import numpy as np
import pytest
from helpers import BUNDLES, existing

pydicom = pytest.importorskip("pydicom")
hd = pytest.importorskip("highdicom")

from dicom_series import write_series  # noqa: E402
from pydicom.sr.codedict import codes as dictionary  # noqa: E402

from mambamim_nets.bundle.io.dicom_seg import UNKNOWN, SegmentCode, segment_codes, write_dicom_seg  # noqa: E402
from mambamim_nets.bundle.io.dicom_series import series_of  # noqa: E402

NAMES = [path.name for path in existing(BUNDLES.glob("*_seg"))]
SCT = dictionary.SCT
ANATOMY, MORPHOLOGY, TISSUE = SCT.AnatomicalStructure, SCT.MorphologicallyAbnormalStructure, SCT.Tissue
# what a radiologist would say, in the words of pydicom's dictionary: category, type, modifiers, regions
WANTED = {
    "spleen": (ANATOMY, SCT.Spleen, [], []),
    "right kidney": (ANATOMY, SCT.Kidney, [SCT.Right], []),
    "left kidney": (ANATOMY, SCT.Kidney, [SCT.Left], []),
    "kidneys": (ANATOMY, SCT.Kidney, [SCT.Bilateral], []),
    "kidney": (ANATOMY, SCT.Kidney, [], []),
    "gallbladder": (ANATOMY, SCT.Gallbladder, [], []),
    "oesophagus": (ANATOMY, SCT.Esophagus, [], []),
    "liver": (ANATOMY, SCT.Liver, [], []),
    "stomach": (ANATOMY, SCT.Stomach, [], []),
    "aorta": (ANATOMY, SCT.Aorta, [], []),
    "inferior vena cava": (ANATOMY, SCT.InferiorVenaCava, [], []),
    "portal and splenic veins": (ANATOMY, SCT.Vein, [], [SCT.PortalVein, SCT.SplenicVein]),
    "pancreas": (ANATOMY, SCT.Pancreas, [], []),
    "right adrenal gland": (ANATOMY, SCT.AdrenalGland, [SCT.Right], []),
    "left adrenal gland": (ANATOMY, SCT.AdrenalGland, [SCT.Left], []),
    "duodenum": (ANATOMY, SCT.Duodenum, [], []),
    "urinary bladder": (ANATOMY, SCT.Bladder, [], []),
    "bladder": (ANATOMY, SCT.Bladder, [], []),
    "prostate or uterus": (ANATOMY, SCT.Organ, [], []),
    "lungs": (ANATOMY, SCT.Lung, [SCT.Bilateral], []),
    "bone": (TISSUE, SCT.BoneTissue, [], []),
    "brain": (ANATOMY, SCT.Brain, [], []),
    "cyst": (MORPHOLOGY, SCT.Cyst, [], [SCT.Kidney]),
    "necrotic core": (MORPHOLOGY, SCT.Necrosis, [], [SCT.Brain]),
    "oedema": (MORPHOLOGY, SCT.Edema, [], [SCT.Brain]),
    "enhancing tumour": (MORPHOLOGY, SCT.Neoplasm, [], [SCT.Brain]),
    "anterior": (ANATOMY, SCT.Hippocampus, [SCT.Anterior], []),
    "posterior": (ANATOMY, SCT.Hippocampus, [SCT.Posterior], []),
    "vessel": (ANATOMY, SCT.BloodVessel, [], [SCT.Liver]),
}
TUMOUR = {"kits23_seg": [SCT.Kidney], "msd_seg": []}  # where it lies; in msd_seg this depends on the task
# a label that several things share, or that only its task tells apart, says so
SHARED = {"portal and splenic veins", "prostate or uterus"}


def metadata(name: str) -> Path:
    return BUNDLES / name / "configs" / "metadata.json"


def tasks(name: str) -> list[list[str]]:
    """Return the labels of every task of a bundle."""
    pred = json.loads(metadata(name).read_text())["network_data_format"]["post_processed_outputs"]["pred"]
    labels = [[text for value, text in pred["label_def"].items() if value != "0"]]
    if name == "msd_seg":
        labels += [["pancreas", "tumour"], ["vessel", "tumour"], ["spleen"]]
    return labels


def same(code, wanted) -> bool:
    return code == (wanted.value, wanted.scheme_designator, wanted.meaning)


@pytest.mark.parametrize("name", NAMES)
def test_every_label_has_a_code_of_its_own(name, caplog):
    """Two labels of a task never share one, whatever their category; none is just "tissue"."""
    for labels in tasks(name):
        with caplog.at_level(logging.WARNING):
            codes = segment_codes(metadata(name), labels)
        assert list(codes) == labels and not caplog.records
        assert len({(code.type, code.modifiers, code.regions) for code in codes.values()}) == len(labels)
        assert all(code.type != UNKNOWN.type for code in codes.values())


@pytest.mark.parametrize("name", NAMES)
def test_codes_mean_what_the_labels_say(name):
    """Values, schemes and meanings are those of pydicom's dictionary, left and right are the label's."""
    for labels in tasks(name):
        for label, code in segment_codes(metadata(name), labels).items():
            wanted = (MORPHOLOGY, SCT.Neoplasm, [], TUMOUR[name]) if label == "tumour" else WANTED[label]
            category, kind, modifiers, regions = wanted
            assert same(code.category, category), label
            assert same(code.type, kind), label
            assert [same(*pair) for pair in zip(code.modifiers, modifiers, strict=True)] == [True] * len(modifiers)
            assert [same(*pair) for pair in zip(code.regions, regions, strict=True)] == [True] * len(regions)
            sides = {side for side in ("left", "right") if side in label.split()}
            assert sides == {meaning.lower() for _, _, meaning in code.modifiers} & {"left", "right"}


@pytest.mark.parametrize("name", NAMES)
def test_a_label_of_two_things_says_why_its_code_is_a_general_one(name):
    pred = json.loads(metadata(name).read_text())["network_data_format"]["post_processed_outputs"]["pred"]
    entries = pred["segment_codes"]
    assert set(entries) == {label for labels in tasks(name) for label in labels}, "and no entry without a label"
    for label, entry in entries.items():
        assert set(entry) <= {"category", "type", "modifiers", "regions", "reason"}
        assert ("reason" in entry) == (label in SHARED or (name, label) == ("msd_seg", "tumour"))


@pytest.mark.parametrize("name", NAMES)
def test_a_written_dicom_seg_holds_the_codes(name, tmp_path):
    """Read back by highdicom; modifiers stand in the item of the type, where the standard has them."""
    write_series(tmp_path / "case")
    (series,) = series_of(tmp_path / "case")[0]
    for labels in tasks(name):
        codes = segment_codes(metadata(name), labels)
        numbered = dict(enumerate(labels, start=1))
        label = np.zeros(series.shape, dtype="uint8")
        label.flat[: len(labels)] = [*numbered]
        path = write_dicom_seg(label, series.affine, series, numbered, tmp_path / "seg.dcm", "x", codes)
        seg = hd.seg.segread(path)
        for number, text in numbered.items():
            segment, code = seg.get_segment_description(number), codes[text]
            assert segment.segment_label == text
            assert triple(segment.segmented_property_category) == code.category
            assert triple(segment.segmented_property_type) == code.type
            held = segment.SegmentedPropertyTypeCodeSequence[0].get("SegmentedPropertyTypeModifierCodeSequence", [])
            assert tuple(map(triple, held)) == code.modifiers
            assert tuple(map(triple, segment.anatomic_regions)) == code.regions


def test_inference_writes_the_codes_of_its_bundle(bundle_run, tmp_path):
    uid = write_series(tmp_path / "case")
    options = {"input": str(tmp_path / "case"), "output_dir": str(tmp_path / "out")}
    bundle_run("amos_seg", "inference", spacing=[4.0, 4.0, 4.0], **options)
    seg = hd.seg.segread(tmp_path / "out" / "case_seg.dcm")
    assert seg.ReferencedSeriesSequence[0].SeriesInstanceUID == uid
    codes = segment_codes(metadata("amos_seg"), tasks("amos_seg")[0])
    segments = [seg.get_segment_description(number) for number in range(1, 16)]
    assert {part.segment_label: triple(part.segmented_property_type) for part in segments} == {
        label: code.type for label, code in codes.items()
    }
    left = segments[12 - 1].SegmentedPropertyTypeCodeSequence[0].SegmentedPropertyTypeModifierCodeSequence
    assert segments[12 - 1].segment_label == "left adrenal gland" and [item.CodeMeaning for item in left] == ["Left"]


def triple(item) -> tuple[str, str, str]:
    return item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning


def test_a_label_without_a_code_is_named_and_called_tissue(tmp_path, caplog):
    (tmp_path / "metadata.json").write_text("{}")
    for path in (tmp_path / "metadata.json", tmp_path / "none.json"):
        with caplog.at_level(logging.WARNING):
            assert segment_codes(path, ["nose", "ear"]) == {}
        assert f"segment_codes of {path} has no nose, ear: a DICOM-SEG calls them tissue" in caplog.text


KIDNEY = ["64033007", "SCT", "Kidney"]


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"type": KIDNEY}, "'kidney' must have the keys category and type"),
        ("64033007", "'kidney' must have the keys category and type, is '64033007'"),
        ({"category": KIDNEY, "type": "64033007"}, "a code of 'kidney' must be a list of value, coding scheme"),
        ({"category": KIDNEY, "type": KIDNEY[:2]}, "a code of 'kidney' must be a list of value, coding scheme"),
        ({"category": KIDNEY, "type": KIDNEY, "modifiers": KIDNEY}, "of 'kidney' must be a list .*, is '64033007'"),
    ],
    ids=["no category", "no entry", "a value alone", "no meaning", "one modifier that is no list of codes"],
)
def test_an_incomplete_code_is_refused(tmp_path, entry, message):
    pred = {"segment_codes": {"kidney": entry}}
    data = {"network_data_format": {"post_processed_outputs": {"pred": pred}}}
    (tmp_path / "metadata.json").write_text(json.dumps(data))
    with pytest.raises(ValueError, match=message):
        segment_codes(tmp_path / "metadata.json", ["kidney"])


def test_modifiers_and_regions_may_be_left_out(tmp_path):
    pred = {"segment_codes": {"kidney": {"category": KIDNEY, "type": KIDNEY}}}
    (tmp_path / "m.json").write_text(json.dumps({"network_data_format": {"post_processed_outputs": {"pred": pred}}}))
    assert segment_codes(tmp_path / "m.json", ["kidney"]) == {"kidney": SegmentCode(tuple(KIDNEY), tuple(KIDNEY))}
