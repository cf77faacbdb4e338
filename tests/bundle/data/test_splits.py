"""mambamim_nets.bundle.data.splits: made and given folds, their parts, few labels."""

import json
import logging
from pathlib import Path
from typing import ClassVar

import pytest
from helpers import BUNDLES

from mambamim_nets.bundle.data.datasets import fold_cases
from mambamim_nets.bundle.data.labelled import labelled_cases
from mambamim_nets.bundle.data.splits import (
    folds,
    limit_cases,
    listed_parts,
    named_in,
    split,
    with_listed_parts,
    with_numbered_subjects,
)


def write(path: Path, content) -> Path:
    path.write_text(json.dumps(content))
    return path


def subjects(n_subjects: int, per_subject: int = 2) -> list[dict]:
    return [{"case": f"c{s:02d}_{i}", "subject": f"s{s}"} for s in range(n_subjects) for i in range(per_subject)]


def folds_of_a_bundle(folder, content):
    """Write the folds that come with a bundle; return the bundle and the file."""
    (folder / "bundle" / "configs").mkdir(parents=True)
    return str(folder / "bundle"), str(write(folder / "bundle" / "configs" / "folds.json", content))


class TestFolds:
    def test_made_by_subject_balanced_and_complete(self):
        cases = subjects(7) + subjects(10, per_subject=1)[7:]
        made = folds(cases, n_folds=4)
        assert sorted(case for fold in made for case in fold) == sorted(item["case"] for item in cases)
        home = {case: number for number, fold in enumerate(made) for case in fold}
        assert all(home[item["case"]] == home[f"{item['case'][:-1]}0"] for item in cases)
        assert max(map(len, made)) - min(map(len, made)) <= 1

    def test_made_folds_ignore_list_order_and_follow_the_seed(self):
        cases = subjects(9)
        assert folds(cases) == folds(cases[::-1])
        assert folds(cases) != folds(cases, seed=1)

    def test_made_folds_are_the_same_on_every_machine(self):
        assert folds([{"case": name} for name in "abcdef"], n_folds=3) == [["c", "f"], ["b", "d"], ["a", "e"]]

    @pytest.mark.parametrize("n_folds", [0, 1, 4])
    def test_number_of_folds(self, n_folds):
        with pytest.raises(ValueError, match=rf"n_folds {n_folds} must be from 2 to 3"):
            folds(subjects(3), n_folds=n_folds)

    @pytest.mark.parametrize(
        "content",
        [
            {"subject_folds5": [["a", "b"], ["c", "d"]], "cases": [{"case": "a", "subject": 1}]},
            {"folds": [["a", "b"], ["c", "d"]]},
            {"folds": {"1": ["c", "d"], "0": ["a", "b"]}},
            [["a", "b.nii.gz"], ["d", "c"]],
            [{"train": ["c", "d"], "val": ["a", "b"]}, {"train": ["a", "b"], "val": ["c", "d"]}],
            {"training": [{"image": f"i/{c}.nii.gz", "label": f"{c}.nii.gz", "fold": int(c > "b")} for c in "abcd"]},
        ],
        ids=["split.json", "folds", "folds by number", "lists", "nnU-Net", "Decathlon"],
    )
    def test_file_layouts(self, tmp_path, content):
        cases = [{"case": name} for name in "abcd"]
        assert folds(cases, write(tmp_path / "f.json", content)) == [["a", "b"], ["c", "d"]]

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            ([["a", "b", "x"], ["c", "d"]], "not in the data set: x;"),
            ([["a", "b", "c"], ["c", "d"]], "more than one fold: c;"),
            ([["a", "b"], ["c"]], "1 cases in no fold: d;"),
            ([["a", "c"], ["b", "d"]], r"subjects in several folds: s1 \(cases a, b\)"),
            ([["a", "b", "c", "d"], []], "non-empty lists"),
            ({"other": 1}, r"it has keys \['other'\]"),
            (
                {"folds": {"1": ["a", "b"], "2": ["c", "d"]}},
                r"numbered \[1, 2\]; number them from 0 on, as --fold",
            ),
            (
                {"training": [{"image": f"{c}.nii.gz", "fold": 2 * (c > "b")} for c in "abcd"]},
                r"folds are numbered \[0, 2\]; number them from 0",
            ),
            (
                [{"train": ["c"], "val": ["a", "b"]}, {"train": ["a", "b"], "val": ["c", "d"]}],
                "fold 0 trains on 1 cases, and must train on all that it does not hold out, which are 2; differing: d:",
            ),
            ([{"train": ["c", "d"], "val": ["a", "b"]}], "2 cases in no fold: c, d"),
            (
                {"training": [{"image": "a.nii.gz", "label": "a.nii.gz"}]},
                r"1 training entries without 'image' or 'fold', .*; give each a 'fold'",
            ),
            (
                {"training": [{"image": "a.nii.gz"}], "validation": [{"image": "b.nii.gz"}]},
                "use fold 'official' for its own division",
            ),
        ],
        ids=[
            "unknown",
            "repeated",
            "unlisted",
            "divided",
            "empty",
            "layout",
            "from 1",
            "with a gap",
            "fewer for training",
            "one split",
            "no fold",
            "official",
        ],
    )
    def test_file_errors(self, tmp_path, content, message):
        cases = [{"case": "a", "subject": "s1"}, {"case": "b", "subject": "s1"}, {"case": "c"}, {"case": "d"}]
        with pytest.raises(ValueError, match=message):
            folds(cases, write(tmp_path / "f.json", content))

    def test_subjects_that_only_the_file_knows_are_kept_together(self, tmp_path):
        content = {"folds": [["a"], ["b"]], "cases": [{"case": "a", "subject": 1}, {"case": "b", "subject": 1}]}
        with pytest.raises(ValueError, match="subjects in several folds: 1"):
            folds([{"case": "a"}, {"case": "b"}], write(tmp_path / "f.json", content))

    def test_unlisted_cases_are_listed_up_to_ten(self, tmp_path):
        cases = [{"case": f"c{i:02d}"} for i in range(13)]
        with pytest.raises(ValueError, match=r"12 cases in no fold: c01, .*, c10 and 2 more"):
            folds(cases, write(tmp_path / "f.json", [["c00"]]))

    def test_missing_file(self, tmp_path):
        with pytest.raises(FileNotFoundError, match=r"none\.json"):
            folds(subjects(3), tmp_path / "none.json")


class TestSplit:
    CASES = tuple({"case": name} for name in "abcd")
    FOLDS = (("a", "c"), ("b",), ("d",))

    @pytest.mark.parametrize("fold", [1, "1"])
    def test_parts_are_disjoint_and_complete(self, fold):
        train = [item["case"] for item in split(self.CASES, fold, self.FOLDS, "train")]
        val = [item["case"] for item in split(self.CASES, fold, self.FOLDS, "val")]
        assert (train, val) == (["a", "c", "d"], ["b"])

    def test_all_trains_on_everything_and_warns(self, caplog):
        assert split(self.CASES, "all", self.FOLDS, "train") == list(self.CASES)
        assert [item["case"] for item in split(self.CASES, "all", self.FOLDS, "val")] == ["a", "c"]
        assert "say nothing about new scans" in caplog.text

    @pytest.mark.parametrize("fold", [3, -1, "x", None, True])
    def test_fold_out_of_range(self, fold):
        with pytest.raises(ValueError, match=r"must be 0\.\.2 or 'all'"):
            split(self.CASES, fold, self.FOLDS, "train")

    def test_unknown_part(self):
        with pytest.raises(ValueError, match="part 'test' must be"):
            split(self.CASES, 0, self.FOLDS, "test")


class TestOfficial:
    CASES = tuple({"case": name, "listed": "validation" if name in "bd" else "training"} for name in "abcd")
    LISTS: ClassVar[dict] = {
        "training": [{"image": f"imagesTr/{name}.nii.gz", "label": f"labelsTr/{name}.nii.gz"} for name in "cd"],
        "validation": ["imagesTr/a.nii.gz"],
        "test": ["imagesTs/b.nii.gz", {"image": "imagesTs/x.nii.gz"}],
    }

    def test_split_takes_what_is_listed(self):
        train, val = (split(self.CASES, "official", (), part) for part in ("train", "val"))
        assert [[item["case"] for item in items] for items in (train, val)] == [["a", "c"], ["b", "d"]]

    @pytest.mark.parametrize("listed", [{}, {"listed": "training"}], ids=["none", "training only"])
    @pytest.mark.parametrize("part", ["train", "val"])
    def test_nothing_listed(self, listed, part):
        with pytest.raises(
            ValueError, match=r"fold 'official' needs .* give --fold_file .* or choose a fold by number"
        ):
            split([{"case": "a", **listed}], "official", (), part)

    def test_subject_in_both_parts_is_said(self, caplog):
        split([{**item, "subject": "s1"} for item in self.CASES], "official", (), "val")
        assert "same subjects: s1" in caplog.text

    def test_listed_parts(self, tmp_path):
        parts = {"c": "training", "d": "training", "a": "validation"}
        assert listed_parts(write(tmp_path / "f.json", self.LISTS)) == parts

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            (
                {"training": [{"image": "a.nii.gz"}]},
                r"needs a 'training' and a 'validation' list .* keys \['training'\]",
            ),
            ({"training": ["a.nii.gz"], "validation": []}, "not empty"),
            ([["a"], ["b"]], "it has a list"),
            ({"training": ["a.nii.gz"], "validation": ["b.nii.gz", "a.nii.gz"]}, "listed more than once: a;"),
            (
                {"training": [{"label": "a.nii.gz"}], "validation": ["b.nii.gz"]},
                "must be the path of an image, or have",
            ),
        ],
        ids=["one list", "empty", "folds", "repeated", "malformed"],
    )
    def test_malformed_lists(self, tmp_path, content, message):
        with pytest.raises(ValueError, match=message):
            listed_parts(write(tmp_path / "f.json", content))

    def test_missing_file(self, tmp_path):
        with pytest.raises(FileNotFoundError, match=r"none\.json"):
            listed_parts(tmp_path / "none.json")

    def test_file_replaces_what_the_cases_carry(self, tmp_path):
        items = with_listed_parts(self.CASES, write(tmp_path / "f.json", self.LISTS))
        assert [item.get("listed") for item in items] == ["validation", None, "training", "training"]

    @pytest.mark.parametrize(
        ("names", "message"),
        [("abcde", "1 cases in neither 'training' nor 'validation': e;"), ("abc", "not in the data set: d;")],
        ids=["unlisted", "unknown"],
    )
    def test_file_and_cases_must_agree(self, tmp_path, names, message):
        with pytest.raises(ValueError, match=message):
            with_listed_parts([{"case": name} for name in names], write(tmp_path / "f.json", self.LISTS))


class TestFoldCases:
    CASES = tuple({"case": name} for name in "abcdef")
    HALVES = (["a", "b", "c"], ["d", "e", "f"])

    def test_official_by_file_and_by_the_data_set(self, tmp_path):
        path = str(write(tmp_path / "f.json", TestOfficial.LISTS))
        for cases, file, expected in ((self.CASES[:4], path, "a"), (TestOfficial.CASES, None, "bd")):
            chosen = fold_cases(cases, str(tmp_path), "official", "val", file)
            assert [item["case"] for item in chosen] == list(expected)
        (kept,) = fold_cases(TestOfficial.CASES, str(tmp_path), "official", "train", train_cases=1)
        assert kept["listed"] == "training"

    def test_published_folds_are_used_and_named(self, tmp_path, caplog):
        (tmp_path / "data").mkdir()
        bundle, path = folds_of_a_bundle(tmp_path, {"folds": {"0": self.HALVES[0], "1": self.HALVES[1]}, "source": "x"})
        with caplog.at_level(logging.INFO):
            chosen = fold_cases(self.CASES, str(tmp_path / "data"), 1, "val", bundle_root=bundle)
        assert [item["case"] for item in chosen] == self.HALVES[1]
        assert path in caplog.text

    @pytest.mark.parametrize("names", ["abcde", "abcdefg"])
    def test_published_folds_of_other_cases_are_not_used(self, tmp_path, caplog, names):
        bundle, _ = folds_of_a_bundle(tmp_path, {"folds": {"0": list(names[:2]), "1": list(names[2:])}})
        with caplog.at_level(logging.INFO):
            published = fold_cases(self.CASES, str(tmp_path), 0, "val", bundle_root=bundle)
        assert published == fold_cases(self.CASES, str(tmp_path), 0, "val")
        assert "folds made by subject" in caplog.text

    def test_all_of_one_case_needs_no_folds(self, tmp_path):
        """As in the evaluation of a scan of one's own."""
        assert fold_cases(self.CASES[:1], str(tmp_path), "all", "train") == [dict(self.CASES[0])]
        assert fold_cases(self.CASES[:1], str(tmp_path), "all", "val") == [dict(self.CASES[0])]
        assert fold_cases(self.CASES[:4], str(tmp_path), "all", "val") == [dict(case) for case in self.CASES[:4]]
        assert len(fold_cases(self.CASES, str(tmp_path), "all", "val")) < len(self.CASES), "fold 0 of five"
        with pytest.raises(ValueError, match="from 2 to 1, the number of subjects; add cases"):
            fold_cases(self.CASES[:1], str(tmp_path), 0, "train")

    def test_a_data_set_that_has_grown_is_told_that_its_folds_are_others(self, tmp_path, caplog):
        names = [item["case"] for item in self.CASES]
        bundle, file = folds_of_a_bundle(tmp_path, [names[1:5], ["gone", *names[5:]]])
        with caplog.at_level(logging.WARNING, "mambamim_nets"):
            for part in ("train", "val"):
                fold_cases(self.CASES, str(tmp_path), 0, part, bundle_root=bundle)
        (record,) = caplog.records
        assert (
            f"{file} is not used, since it names other cases: gone only in the file; {names[0]} only in the data"
            in (record.getMessage())
        )
        fold_cases([{"case": f"phantom_{n}"} for n in range(9)], str(tmp_path), 0, "val", bundle_root=bundle)
        assert len(caplog.records) == 1, "another data set has folds of its own"

    def test_no_published_file(self, tmp_path):
        assert named_in(tmp_path / "none.json") == set()
        assert fold_cases(self.CASES, str(tmp_path), 0, "val", bundle_root=str(tmp_path))

    @pytest.mark.parametrize("given", ["fold_file", "split.json", "splits_final.json"])
    def test_files_that_go_before_the_published_folds(self, tmp_path, given):
        bundle, _ = folds_of_a_bundle(tmp_path, self.HALVES)
        path = write(tmp_path / given, {"folds": [["f"], ["a", "b", "c", "d", "e"]]})
        file = str(path) if given == "fold_file" else None
        chosen = fold_cases(self.CASES, str(tmp_path), 0, "val", file, bundle_root=bundle)
        assert [item["case"] for item in chosen] == ["f"]


class TestLimitCases:
    def test_nested_deterministic_and_independent_of_order(self):
        cases = subjects(10)
        names = [{item["case"] for item in limit_cases(cases, n, seed=3)} for n in (4, 8)]
        assert [len(chosen) for chosen in names] == [4, 8]
        assert names[0] < names[1]
        assert {item["case"] for item in limit_cases(cases[::-1], 4, seed=3)} == names[0]
        assert {item["case"] for item in limit_cases(cases, 4, seed=4)} != names[0]

    @pytest.mark.parametrize("n", [None, 0, 6])
    def test_all(self, n):
        assert limit_cases(subjects(3), n, seed=0) == subjects(3)

    @pytest.mark.parametrize("n", [-1, 7])
    def test_out_of_range(self, n):
        with pytest.raises(ValueError, match=rf"n {n} must lie in 0\.\.6"):
            limit_cases(subjects(3), n, seed=0)


def test_hippocampus_folds_are_disjoint_by_subject(real_data):
    root = real_data("msd_hippocampus")
    cases = labelled_cases(root)
    subject_of = {item["case"]: item["subject"] for item in cases}
    assert len(cases) == 202
    for divided in (folds(cases, root / "split.json"), folds(cases, n_folds=5)):
        assert [len(fold) for fold in divided] in ([41, 40, 40, 40, 41], [41, 41, 40, 40, 40])
        for fold in range(5):
            train = {subject_of[item["case"]] for item in split(cases, fold, divided, "train")}
            val = {subject_of[item["case"]] for item in split(cases, fold, divided, "val")}
            assert train
            assert val
            assert not train & val


BTCV = tuple(f"img{number:04d}" for number in (*range(1, 11), *range(21, 41)))


@pytest.mark.parametrize(
    ("bundle", "sizes", "case"),
    [
        ("btcv_seg", [6] * 5, "img0035"),
        ("brats_seg", [251, 250, 250, 250, 250], "BraTS2021_01146"),
        ("kits23_seg", [98, 98, 98, 98, 97], "case_00004"),
    ],
)
def test_published_folds_divide_every_case_once(bundle, sizes, case):
    path = BUNDLES / bundle / "configs" / "folds.json"
    names = named_in(path)
    divided = folds([{"case": name} for name in names], path)
    assert [len(fold) for fold in divided] == sizes
    assert case in divided[0]
    assert json.loads(path.read_text())["source"].startswith("MONAI")
    assert bundle != "btcv_seg" or names == set(BTCV)


def test_official_split_of_btcv_as_downloaded(real_data, tmp_path):
    for name in BTCV:
        for kind in ("img", "label"):
            path = tmp_path / "RawData" / "Training" / kind / f"{name.replace('img', kind)}.nii.gz"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
    cases = labelled_cases(tmp_path, ["CT"])
    fold_file = str(real_data("splits/btcv_dataset_0.json"))
    train, val = (fold_cases(cases, str(tmp_path), "official", part, fold_file) for part in ("train", "val"))
    assert [item["case"] for item in train] == list(BTCV[:24])
    assert [item["case"] for item in val] == list(BTCV[24:])
    bundle = str(BUNDLES / "btcv_seg")
    assert fold_cases(cases, str(tmp_path), 0, "val", bundle_root=bundle) == [
        {key: value for key, value in item.items() if key != "listed"} for item in val
    ]


NUMBERED = {"pattern": r"hippocampus_(\d+)", "consecutive": 2}


def test_numbered_cases_of_one_person_are_never_divided():
    """A plain download of Task04 has no split.json: 2k - 1 and 2k are the two hippocampi of one person."""
    cases = [{"case": f"hippocampus_{number:03d}"} for number in (1, 3, 4, *range(6, 60, 3), *range(61, 99))]
    divided = folds(with_numbered_subjects(cases, **NUMBERED))
    fold_of = {case: number for number, fold in enumerate(divided) for case in fold}
    pairs = [(f"hippocampus_{k - 1:03d}", f"hippocampus_{k:03d}") for k in range(2, 99, 2)]
    together = [fold_of[first] == fold_of[second] for first, second in pairs if {first, second} <= set(fold_of)]
    assert len(together) > 15 and all(together)
    alone = {case: number for number, fold in enumerate(folds(cases)) for case in fold}
    assert not all(alone[a] == alone[b] for a, b in pairs if {a, b} <= set(alone)), "without the rule they were"


def test_numbered_subjects_leave_what_is_known_and_other_names_alone():
    known = [{"case": "hippocampus_001", "subject": "x"}, {"case": "hippocampus_002"}]
    assert [item["subject"] for item in with_numbered_subjects(known, **NUMBERED)] == ["x", "1"]
    others = [{"case": "hippocampus_001"}, {"case": "brain_2"}]
    assert with_numbered_subjects(others, **NUMBERED) == others


def test_the_hippocampus_task_has_the_rule_of_its_data_set():
    root = Path(__file__).parents[3]
    task = json.loads((root / "bundles/msd_seg/configs/tasks/Task04_Hippocampus.json").read_text())
    assert task["subjects"] == NUMBERED


def test_folds_that_are_counted_from_1(tmp_path, reliability):
    path = write(tmp_path / "folds.json", {"folds": {"1": ["a"], "2": ["b"]}})
    with pytest.raises(ValueError, match="number them from 0 on") as end:
        folds([{"case": "a"}, {"case": "b"}], path)
    reliability("Data sets", "a file of folds that are counted from 1", end.value)
