"""mambamim_nets.bundle.folds: made and given folds, their parts, few labels."""

import json
import os
from pathlib import Path

import pytest

from mambamim_nets.bundle.datalist import labelled_cases
from mambamim_nets.bundle.folds import folds, limit_cases, split

REPOSITORY = Path(__file__).resolve().parents[2]
DATA = Path(os.environ.get("MAMBAMIM_DATA", REPOSITORY.parent / "shared" / "data"))


def write(path: Path, content) -> Path:
    path.write_text(json.dumps(content))
    return path


def subjects(n_subjects: int, per_subject: int = 2) -> list[dict]:
    return [{"case": f"c{s:02d}_{i}", "subject": f"s{s}"} for s in range(n_subjects) for i in range(per_subject)]


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
        with pytest.raises(ValueError, match=rf"n_folds {n_folds} must lie in 2\.\.3"):
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
                {"training": [{"image": "a.nii.gz", "label": "a.nii.gz"}]},
                "1 training entries without 'image' or 'fold'",
            ),
        ],
        ids=["unknown", "repeated", "unlisted", "divided", "empty", "layout", "no fold"],
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


@pytest.mark.skipif(
    not (DATA / "msd_hippocampus" / "split.json").is_file(),
    reason=f"MSD Hippocampus is not in {DATA}; set MAMBAMIM_DATA to the folder that holds msd_hippocampus",
)
def test_hippocampus_folds_are_disjoint_by_subject():
    root = DATA / "msd_hippocampus"
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
