"""Names of options: what nothing would read is refused, with the nearest name that something reads."""

import json

import pytest
from monai.bundle import ConfigParser

from mambamim_nets.bundle.overrides import check_components, check_names, check_task, check_texts

CONFIG = {
    "rate": 0.1,
    "table": {"kept": 1, "read": 2},
    "optimizer": {"_target_": "torch.optim.SGD", "params": [], "lr": "@rate", "momentum": "$@table#read * 0.1"},
}


@pytest.fixture
def merged(tmp_path):
    """Return a function that merges the configuration with options; it gives the parser and the files."""
    file = tmp_path / "train.json"
    file.write_text(json.dumps(CONFIG))

    def merge(*more, **options):
        files = [str(file)]
        for number, content in enumerate(more):
            (tmp_path / f"{number}.json").write_text(json.dumps(content))
            files.append(str(tmp_path / f"{number}.json"))
        parser = ConfigParser(ConfigParser.load_config_files(files))
        parser.update(options)
        return parser, files

    return merge


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"rat": 1}, r"option --rat is unknown to .*train\.json; did you mean --rate\?"),
        ({"zzz": 1}, r"option --zzz is unknown to .*; valid are optimizer, rate, table"),
        ({"table#reads": 1}, r"option --table#reads is read by nothing; did you mean table#read\?"),
    ],
)
def test_a_name_that_nothing_reads(merged, options, words):
    parser, files = merged(**options)
    with pytest.raises(ValueError, match=words):
        check_names(parser, files, options)


@pytest.mark.parametrize("options", [{"rate": 1}, {"table#read": 3}, {"optimizer#lr": 0.2}, {"tracking_uri": "x"}])
def test_names_that_something_reads(merged, options):
    parser, files = merged(**options)
    check_names(parser, files, options)


def test_an_option_that_a_later_file_has_no_use_for(merged):
    parser, files = merged({"rate": None}, rate=1)
    with pytest.raises(ValueError, match=r"option --rate has no effect with .*0\.json; leave it out"):
        check_names(parser, files, {"rate": 1})


def test_a_later_file_is_judged_as_options_are(merged):
    parser, files = merged({"table#reed": 1})
    with pytest.raises(ValueError, match=r"0\.json: table#reed is read by nothing; did you mean table#read\?"):
        check_names(parser, files, {})


def test_an_argument_that_a_class_does_not_take(merged):
    check_components(merged()[0], {})
    parser, _ = merged(**{"optimizer#lrr": 0.1})
    with pytest.raises(ValueError, match=r"--optimizer#lrr is no argument of torch\.optim\.SGD; did you mean optim"):
        check_components(parser, {"optimizer#lrr": 0.1})


@pytest.mark.parametrize("target", ["SegResNett", "../.."])
def test_a_target_that_does_not_exist(merged, target):
    parser, _ = merged(**{"optimizer#_target_": target})
    with pytest.raises(ValueError, match=r"optimizer#_target_ '.*' is not a class or function that can be imported"):
        check_components(parser, {})


def test_a_reference_to_nothing(merged):
    options = {"rate": "@rates"}
    parser, files = merged(**options)
    with pytest.raises(ValueError, match=r"option --rate '@rates' refers to 'rates', which no configuration has"):
        check_texts(parser, files, options)


def test_a_task_is_chosen_by_its_file(tmp_path):
    folder = tmp_path / "configs" / "tasks"
    folder.mkdir(parents=True)
    (folder / "spleen.json").write_text(json.dumps({"task": "spleen", "channels": ["CT"]}))
    parser = ConfigParser({"imports": []})
    values = {"bundle_root": str(tmp_path), "channels": ["CT"]}
    check_task(parser, {**values, "task": "spleen"})
    check_task(parser, {**values, "task": "mine", "channels": ["MR"]})
    for task, channels, words in (("spleen", ["MR"], "task 'spleen' has the channels"), ("mine", ["CT"], "is unknown")):
        with pytest.raises(ValueError, match=rf"{words}.*spleen\.json"):
            check_task(parser, {**values, "task": task, "channels": channels})
