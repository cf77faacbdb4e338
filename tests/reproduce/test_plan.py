"""The tables name what is there; runs that are the same are the same folder; other settings are refused."""

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
from helpers import BUNDLES, option
from monai.bundle import ConfigParser

from mambamim_nets.reproduce.__main__ import parser
from mambamim_nets.reproduce.plan import Run, _effective, _slug, make_plan, tables

TABLES = tables()["tables"]
READ = tables()["pretrain_options"]
ROWS = [(name, row) for name, table in TABLES.items() for row in table["rows"]]


def names(plan):
    return [run.name for run in plan.runs]


def parts_of(row, bundle="msd_seg"):
    """Return the configurations of a row, as dicts, and its overrides: of pre-training and of fine-tuning."""
    found = [("pretrain", row["pretrain"]), (bundle, row["finetune"])]
    folders = [(BUNDLES / name / "configs", part) for name, part in found if part]
    return [([folder / file for file in part["configs"]], part["overrides"]) for folder, part in folders]


@pytest.mark.parametrize("name", TABLES)
def test_a_table_is_well_formed(name):
    table = TABLES[name]
    assert set(table) - {"note", "pairs"} == {"title", "source", "data", "metric", "reference", "rows"}
    labels = [row["label"] for row in table["rows"]]
    assert len(set(labels)) == len(labels) and table["reference"] in labels
    assert all(label in labels for pair in table.get("pairs", []) for label in pair)
    for row in table["rows"]:
        assert set(row) - {"note", "reference", "paper_reference"} == {"label", "paper", "pretrain", "finetune"}
        assert row["paper"] is None or 0 < row["paper"] < 100
        assert row.get("reference", table["reference"]) in labels
        assert all(set(part) == {"configs", "overrides"} for part in (row["pretrain"], row["finetune"]) if part)
        assert row["finetune"]["configs"][0] == "train.json"
        assert not any(character in row["label"] for character in '|"*')


def test_every_default_is_an_option():
    options = vars(parser().parse_args([]))
    assert {key: options[key] for key in tables()["defaults"]} == {
        **tables()["defaults"],
        "output": Path(tables()["defaults"]["output"]),
    }


def test_every_configuration_of_a_row_exists():
    missing = [
        f"{name}, {row['label']}: {path}"
        for name, row in ROWS
        for bundle in READ
        for files, _ in parts_of(row, bundle)
        for path in files
        if not path.is_file()
    ]
    assert ROWS
    assert missing == []


def test_overrides_are_options_of_their_configurations():
    unknown = {}
    for name, row in ROWS:
        for files, overrides in parts_of(row):
            valid = {key for path in files if path.is_file() for key in json.loads(path.read_text())}
            if wrong := {key.split("#")[0] for key in overrides} - valid:
                unknown[name, row["label"]] = wrong
    assert unknown == {}


@pytest.mark.parametrize(("bundle", "task"), [(bundle, task) for bundle in READ for task in READ[bundle]])
def test_pretraining_reads_a_data_set_as_its_bundle_does(bundle, task):
    configs = BUNDLES / bundle / "configs"
    own = [f"tasks/{task}.json"] if bundle == "msd_seg" else []
    said = ConfigParser.load_config_files([str(configs / name) for name in ("train.json", *own)])
    assert said["task"] == task
    pretrain = json.loads((BUNDLES / "pretrain" / "configs" / "train.json").read_text())
    assert pretrain["intensities"][READ[bundle][task]["intensity"]] == said["intensity"]
    keys = ("spacing", "roi_size")
    for size in ("tiny", "base"):
        bundles = ConfigParser({**said, "size": size})
        reads = ConfigParser({**said, **{key: READ[bundle][task][key] for key in keys}, "size": size})
        assert [reads.get_parsed_content(key) for key in keys] == [bundles.get_parsed_content(key) for key in keys]

    def flipped(augmentation):
        return [part["spatial_axis"] for part in augmentation if part["_target_"] == "RandFlipd"]

    own = READ[bundle][task].get("augmentation", pretrain["augmentation"])
    assert flipped(own) == flipped(said["augmentation"]), "anatomy that has a side is not mirrored"
    assert READ[bundle][task].get("in_channels", 1) == len(said["channels"])
    for options in (READ[bundle][task], *READ[bundle][task].get("methods", {}).values()):
        assert set(options) - {"methods"} <= set(pretrain)


def test_rows_share_a_pretraining_and_seeds_do_too(budget):
    plan = make_plan("mask_ratio", budget(folds=(0, 1), seeds=(0, 1, 2)))
    runs = plan.runs
    assert len(plan.cells) == 6 * 2 * 3
    before = [run for run in runs if run.name.startswith("pretrain/")]
    assert len(before) == 5 * 2, "one for each ratio and fold, whatever the seeds"
    assert len(runs) == len(before) + 36
    assert all(runs.index(run.after) < runs.index(run) for run in runs if run.after)
    scan = make_plan("scan", budget())
    assert names(scan)[0] == "pretrain/mambamim_fold0_seed0" and len(scan.runs) == 1 + 4
    both = {"pretrain/mambamim_fold0_seed0", "finetune/hymamba_from_mambamim_seed0_fold0_seed0"}
    assert set(names(plan)) & set(names(scan)) == both, "mask 75 % and raster are the defaults"


def test_every_seed_of_pretraining_goes_with_every_seed_of_fine_tuning(budget):
    plan = make_plan("few_labels", budget(pretrain_seeds=(3, 4), seeds=(0, 1)), ["From scratch", "MambaMIM, TOKI"])
    before = {run.name: option(run.steps[0], "seed") for run in plan.runs if run.name.startswith("pretrain/")}
    assert before == {f"pretrain/mambamim_fold0_seed{seed}": str(seed) for seed in (3, 4)}
    found = [(cell.pretrain_seed, cell.seed, cell.run.after and cell.run.after.folder.name) for cell in plan.cells]
    assert found[:2] == [(None, 0, None), (None, 1, None)], "from scratch there is nothing to repeat"
    assert found[2:] == [(p, s, f"mambamim_fold0_seed{p}") for p in (3, 4) for s in (0, 1)]
    assert len({cell.run.kept.path for cell in plan.cells}) == 6


def test_what_is_kept_of_a_run_names_no_folder_and_no_machine(budget, data, tmp_path):
    moved = shutil.copytree(data, tmp_path / "elsewhere" / "data")
    folds = tmp_path / "folds.json"
    folds.write_text(json.dumps([[f"case_{9 - fold:02d}", f"case_{8 - fold:02d}"] for fold in range(0, 10, 2)]))
    here = make_plan("scan", budget(fold_file=folds)).cells[0].run.kept
    there = make_plan("scan", budget(fold_file=folds, data=moved, output=tmp_path / "other")).cells[0].run.kept
    assert here.settings == there.settings and len(here.settings) == 1 + 2 + 1
    assert not any(str(tmp_path) in text or str(data) in text or str(BUNDLES) in text for text in here.settings)
    assert "--dataset_dir DATA" in here.settings[1] and "--fold_file FOLDS" in here.settings[1]
    folds.write_text(json.dumps([[f"case_{fold:02d}", f"case_{fold + 1:02d}"] for fold in range(0, 10, 2)]))
    assert make_plan("scan", budget(fold_file=folds)).cells[0].run.kept.settings[-1] != here.settings[-1]


def test_a_name_tells_apart_all_that_the_tables_ask_for():
    found = {}
    for _, row in ROWS:
        for kind in ("pretrain", "finetune"):
            if not row[kind] or not all(path.is_file() for files, _ in parts_of(row) for path in files):
                continue
            bundle = BUNDLES / ("pretrain" if kind == "pretrain" else "msd_seg")
            configs, changed = _effective(row[kind], bundle)
            found.setdefault((kind, _slug(configs, changed)), set()).add((*configs, *sorted(map(str, changed.items()))))
    assert found and all(len(asked) == 1 for asked in found.values())


def test_commands_say_the_whole_budget(budget, data, tmp_path):
    plan = make_plan("scan", budget(seeds=(7,), finetune={"amp": "true"}, pretrain={"batch_size": "2"}), ["Zigzag"])
    before, after = plan.runs
    (pretrain,), (train, evaluate) = before.steps, after.steps
    assert [option(pretrain, name) for name in ("size", "seed", "max_epochs", "intensity", "batch_size", "scan")] == [
        "tiny",
        "0",
        "3",
        "mr",
        "2",
        None,
    ]
    for step in (train, evaluate):
        files = option(step, "config_file")
        assert "/msd_seg/configs/train.json', " in files and "/configs/tasks/Task04_Hippocampus.json'" in files
        wanted = [str(data), None, "tiny", "0", "7", "4", "zigzag", "true", str(after.folder)]
        given = ("dataset_dir", "task", "size", "fold", "seed", "train_cases", "scan", "amp", "output_dir")
        assert [option(step, name) for name in given] == wanted
    assert option(train, "max_epochs") == "2" and option(train, "pretrained") == str(before.folder / "encoder.pt")
    assert option(evaluate, "checkpoint") == str(after.folder / "checkpoint_last.pt")
    assert "evaluate.json" in option(evaluate, "config_file") and "evaluate.json" not in option(train, "config_file")


def test_a_method_keeps_its_own_window_unless_the_data_set_has_one_for_it(budget, tmp_path, monkeypatch):
    configs = shutil.copytree(BUNDLES, tmp_path / "bundles", ignore=shutil.ignore_patterns("models", "runs", "phantom"))
    (configs / "pretrain" / "configs" / "own.json").write_text('{"roi_size": [128, 128, 32]}')
    part = {"configs": ["train.json", "own.json"], "overrides": {}}
    monkeypatch.setitem(TABLES["scan"]["rows"][0], "pretrain", part)

    def window(task):
        (step,) = make_plan("scan", budget(bundles=configs, task=task), ["Raster"]).runs[0].steps
        return option(step, "roi_size"), option(step, "spacing")

    assert window("Task04_Hippocampus") == (None, "[1.0, 1.0, 1.0]")
    monkeypatch.setitem(READ["msd_seg"]["Task04_Hippocampus"], "methods", {"own": {"roi_size": [64, 64, 32]}})
    assert window("Task04_Hippocampus") == ("[64, 64, 32]", "[1.0, 1.0, 1.0]")


def test_pretraining_never_sees_the_held_out_fold(budget, data):
    plan = make_plan("scan", budget(folds=(0, 1)))
    seen = {}
    for path, content in plan.lists.items():
        seen[path.stem] = {Path(entry["image"]).name for entry in json.loads(content)["training"]}
    assert {name: len(images) for name, images in seen.items()} == {"fold0": 8, "fold1": 8}
    everything = {path.name for path in (data / "imagesTr").iterdir()}
    held_out = [everything - images for images in seen.values()]
    assert not held_out[0] & held_out[1]
    assert [option(run.steps[0], "sources") for run in plan.runs if "pretrain/" in run.name] == [
        f"['{path}']" for path in plan.lists
    ]


def test_folds_come_from_a_file_where_one_is_given(budget, tmp_path):
    cases = [f"case_{number:02d}" for number in range(10)]
    path = tmp_path / "folds.json"
    path.write_text(json.dumps([cases[:3], cases[3:]]))
    plan = make_plan("scan", budget(fold_file=path))
    content = next(iter(plan.lists.values()))
    assert [Path(entry["image"]).name[:7] for entry in json.loads(content)["training"]] == cases[3:]
    assert all(option(step, "fold_file") == str(path) for step in plan.runs[-1].steps)


@pytest.mark.parametrize(
    ("changes", "only", "message"),
    [
        (
            {},
            ["mask 74 %"],
            "--only 'mask 74 %' is no row of table mask_ratio; its rows are 'w/o pretrained', 'mask 25 %'",
        ),
        ({"train_cases": 9}, [], "--train_cases 9 is more than the 8 training cases of fold 0"),
        ({"folds": (5,)}, [], "fold 5 must be 0..4"),
        ({"bundles": Path("nowhere")}, [], "row 'w/o pretrained' needs nowhere"),
    ],
)
def test_what_cannot_be_run_is_refused_at_once(budget, changes, only, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        make_plan("mask_ratio", budget(**changes), only)


def test_a_folder_made_with_other_settings_is_refused(tmp_path):
    run = Run("finetune/a", tmp_path / "a", (("--max_epochs", "2"),), tmp_path / "a" / "summary.md")
    run.check()
    run.folder.mkdir()
    run.check()
    (run.folder / "run.json").write_text(json.dumps({"settings": run.settings()}))
    run.check()
    other = dataclasses.replace(run, steps=(("--max_epochs", "3"),))
    with pytest.raises(ValueError, match=r"other settings \(2 there, 3 here\).* another output folder"):
        other.check()
    with pytest.raises(ValueError, match="images b here"):
        dataclasses.replace(run, inputs="images b").check()
    two = dataclasses.replace(run, inputs="labels a; images a")
    (run.folder / "run.json").write_text(json.dumps({"settings": two.settings()}))
    with pytest.raises(ValueError, match=r"\(images a there, images b here\)"):
        dataclasses.replace(two, inputs="labels a; images b").check()
    (run.folder / "run.json").unlink()
    (run.folder / "model_best.pt").touch()
    with pytest.raises(ValueError, match="nothing on record there"):
        run.check()
