"""bundle.metrics.segmentation: hand-computed metrics, absent classes, tables from one process and from two."""

import csv
import math
import socket

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from monai.data import MetaTensor

from mambamim_nets.bundle.metrics.segmentation import SegmentationTable, case_metrics

STRUCTURES = {"anterior": (1,), "posterior": (2,)}
ONE = {"cube": (1,)}


def cube(start: int, shape=(24, 20, 18), value: int = 1) -> np.ndarray:
    """A cube of 10 voxels a side that begins at (start, 4, 5)."""
    label = np.zeros(shape, np.uint8)
    label[start : start + 10, 4:14, 5:15] = value
    return label


def row(dice: float, hd95: float = 1.0, surface_dice: float = 1.0, missing: float = 0.0) -> dict:
    return {"dice": dice, "hd95": hd95, "surface_dice": surface_dice, "missing": missing}


def read(path) -> list[dict]:
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


class TestCaseMetrics:
    # Moved by 2 voxels along d, 8 of 10 layers agree: Dice 2 * 800 / 2000. Of the 488 surface voxels of either cube,
    # the 100 of its free end face are 2 voxels from the other cube: more than 5 %, so HD95 is 2 edges along d.
    @pytest.mark.parametrize(
        ("spacing", "hd95"), [((1, 1, 1), 2.0), ((3, 1, 1), 6.0), ((1, 1, 3), 2.0), ((0.5, 2, 2), 1.0)]
    )
    def test_shifted_cube(self, spacing, hd95):
        metrics = case_metrics(cube(6), cube(8), ONE, spacing)["cube"]
        assert metrics["dice"] == pytest.approx(0.8)
        assert metrics["hd95"] == pytest.approx(hd95)
        assert metrics["missing"] == 0

    # Not within 1 mm: the 100 voxels of the free end face, and the 6 x 6 of the inner end face that are 2 voxels deep.
    @pytest.mark.parametrize(("tolerance", "expected"), [(0.5, None), (1.0, 352 / 488), (2.0, 1.0)])
    def test_surface_dice_tolerance_in_mm(self, tolerance, expected):
        value = case_metrics(cube(6), cube(8), ONE, (1, 1, 1), tolerance_mm=tolerance)["cube"]["surface_dice"]
        assert value < 352 / 488 if expected is None else value == pytest.approx(expected)
        assert case_metrics(cube(6), cube(8), ONE, (0.1, 1, 1))["cube"]["surface_dice"] == 1

    def test_perfect_prediction(self):
        metrics = case_metrics(cube(6), cube(6), ONE, (1, 2, 3))["cube"]
        assert metrics == {"dice": 1.0, "hd95": 0.0, "surface_dice": 1.0, "missing": 0.0}

    def test_absent_in_both_is_not_counted(self):
        metrics = case_metrics(cube(6), cube(6), STRUCTURES, (1, 1, 1))["posterior"]
        assert all(math.isnan(metrics[key]) for key in ("dice", "hd95", "surface_dice"))
        assert metrics["missing"] == 0

    @pytest.mark.parametrize("found", [True, False])
    def test_absent_in_one_scores_zero_and_is_missing(self, found):
        maps = (cube(6), np.zeros_like(cube(6)))
        metrics = case_metrics(*(maps if found else maps[::-1]), ONE, (1, 1, 1))["cube"]
        assert (metrics["dice"], metrics["surface_dice"], metrics["missing"]) == (0, 0, 1)
        assert math.isnan(metrics["hd95"])

    def test_both_empty(self):
        empty = np.zeros((4, 5, 6), np.uint8)
        assert all(
            math.isnan(metrics["dice"]) for metrics in case_metrics(empty, empty, STRUCTURES, (1, 1, 1)).values()
        )

    def test_crop_changes_nothing_at_the_border(self):
        inside, border = np.zeros((12, 12, 12), np.uint8), np.zeros((8, 8, 8), np.uint8)
        moved = {}
        for name, array, offset in (("inside", inside, 2), ("border", border, 0)):
            pred = array.copy()
            array[offset : offset + 5, offset : offset + 8, offset : offset + 8] = 1
            pred[offset : offset + 7, offset : offset + 8, offset : offset + 8] = 1
            moved[name] = case_metrics(pred, array, ONE, (1, 1, 1))
        assert moved["inside"] == moved["border"]

    def test_classes_are_separate(self):
        both = cube(6)
        pred = both.copy()
        both[10:16][both[10:16] == 1] = 2
        pred[11:16][pred[11:16] == 1] = 2
        metrics = case_metrics(pred, both, STRUCTURES, (1, 1, 1))
        assert metrics["anterior"]["dice"] == pytest.approx(2 * 4 / 9)
        assert metrics["posterior"]["dice"] == pytest.approx(2 * 5 / 11)

    @pytest.mark.parametrize(
        "convert",
        [
            torch.from_numpy,
            lambda a: torch.from_numpy(a)[None].float(),
            lambda a: MetaTensor(a[None]),
            np.float64,
            np.flip,
        ],
        ids=["tensor", "channel first", "MetaTensor", "float64", "negative strides"],
    )
    def test_kinds_of_input(self, convert):
        pred, label = convert(cube(6)), convert(cube(8))
        metrics = case_metrics(pred, label, {"cube": ["1"]}, (1, 1, 1))["cube"]
        assert metrics["dice"] == pytest.approx(0.8)
        assert isinstance(metrics["hd95"], float)

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"pred": cube(6)[1:]}, r"pred \(23, 20, 18\) and label \(24, 20, 18\) must have one shape"),
            ({"pred": cube(6)[0]}, "pred .* must be"),
            ({"label": np.stack([cube(6)] * 2)}, "label .* must be"),
            ({"spacing": (1, 1)}, "spacing"),
            ({"spacing": (1, 0, 1)}, "spacing"),
            ({"tolerance_mm": -1}, "tolerance_mm -1"),
            ({"structures": {}}, "must name at least one"),
            ({"structures": {"background": [0]}}, "other than 0"),
        ],
    )
    def test_bad_arguments(self, changes, message):
        arguments = {"pred": cube(6), "label": cube(6), "structures": ONE, "spacing": (1, 1, 1), **changes}
        with pytest.raises(ValueError, match=message):
            case_metrics(**arguments)


class TestSegmentationTable:
    def test_files(self, tmp_path):
        table = SegmentationTable(STRUCTURES, tolerance_mm=2)
        table.add("b", {"anterior": row(0.6, 3.0, 0.7), "posterior": row(0.0, math.nan, 0.0, 1.0)})
        table.add("a", {"anterior": row(0.9, 1.0, 0.8), "posterior": row(0.8, 2.0, 0.9)})
        table.add("c", {"anterior": row(0.9, 2.0, 0.9), "posterior": row(math.nan, math.nan, math.nan)})
        table.add("a", {"anterior": row(0.1), "posterior": row(0.1)})
        text = table.write(tmp_path / "out", "These weights are a demonstration.")

        assert text.startswith("These weights are a demonstration.\n\n3 cases; ")
        files = [read(tmp_path / "out" / name) for name in ("metrics.csv", "summary.csv")]
        assert {row["weights"] for rows in files for row in rows} == {"These weights are a demonstration."}
        rows = read(tmp_path / "out" / "metrics.csv")
        assert list(rows[0]) == ["case", "label", "name", "dice", "hd95_mm", "surface_dice", "missing", "weights"]
        assert [(r["case"], r["label"], r["name"]) for r in rows[:2]] == [
            ("a", "1", "anterior"),
            ("a", "2", "posterior"),
        ]
        assert [r["case"] for r in rows[::2]] == ["a", "b", "c"]
        assert (rows[0]["dice"], rows[3]["hd95_mm"], rows[3]["missing"]) == ("0.900000", "nan", "1")

        summary = {(r["name"], r["metric"]): r for r in read(tmp_path / "out" / "summary.csv")}
        assert len(summary) == 9
        anterior = summary["anterior", "dice"]
        assert float(anterior["mean"]) == pytest.approx(0.8, abs=1e-6)
        assert float(anterior["std"]) == pytest.approx(math.sqrt(0.03), abs=1e-6)
        assert float(anterior["median"]) == 0.9
        assert (anterior["n"], anterior["missing"]) == ("3", "0")
        posterior = summary["posterior", "hd95_mm"]
        assert (float(posterior["mean"]), posterior["std"], posterior["n"], posterior["missing"]) == (
            2.0,
            "nan",
            "1",
            "1",
        )
        assert summary["posterior", "dice"]["n"] == "2"
        # per case over its counted classes: a 0.85, b 0.3, c 0.9
        assert float(summary["mean", "dice"]["mean"]) == pytest.approx((0.85 + 0.3 + 0.9) / 3, abs=1e-6)

        assert (tmp_path / "out" / "summary.md").read_text(encoding="utf-8") == text
        assert "surface Dice at 2 mm" in text
        assert "| anterior | 0.8000 ± 0.1732 (0.9000; 3) |" in text

    def test_class_that_never_occurs(self, tmp_path):
        table = SegmentationTable(ONE)
        table.add("a", {"cube": row(math.nan, math.nan, math.nan)})
        assert "| cube | - (n 0) | - (n 0) | - (n 0) | 0 |" in table.write(tmp_path)

    def test_errors(self, tmp_path):
        table = SegmentationTable(STRUCTURES)
        with pytest.raises(ValueError, match="no case was added"):
            table.write(tmp_path)
        with pytest.raises(ValueError, match=r"case 'a': classes \['cube'\] must be"):
            table.add("a", {"cube": row(1.0)})

    @pytest.mark.slow
    def test_two_processes_join_their_rows(self, tmp_path):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        mp.spawn(_rank, args=(port, str(tmp_path)), nprocs=2)
        assert [r["case"] for r in read(tmp_path / "rank0" / "metrics.csv")] == ["a", "b", "c"]
        assert not (tmp_path / "rank1").exists()
        texts = [(tmp_path / f"{rank}.md").read_text(encoding="utf-8") for rank in range(2)]
        assert texts[0] == texts[1]
        assert texts[0].startswith("3 cases;")


def _rank(rank: int, port: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    table = SegmentationTable(ONE)
    for case in (("c", "a"), ("b", "a"))[rank]:  # "a" is the sampler's padding
        table.add(case, {"cube": row(0.5)})
    text = table.write(f"{folder}/rank{rank}")
    with open(f"{folder}/{rank}.md", "w", encoding="utf-8") as file:
        file.write(text)
    dist.destroy_process_group()


def test_a_region_is_measured_as_the_union_of_its_labels():
    pred, label = cube(6), cube(6)
    label[label == 1] = np.where(np.arange((label == 1).sum()) % 2, 1, 4)
    regions = {"core": (1, 4), "enhancing": (4,)}
    metrics = case_metrics(pred, label, regions, (1, 1, 1))
    assert metrics["core"]["dice"] == 1 and metrics["enhancing"] == pytest.approx(
        {"dice": 0, "hd95": math.nan, "surface_dice": 0, "missing": 1}, nan_ok=True
    )
