"""Kinds of options: each takes what its rule says, converted as far as it says, and nothing else."""

import math

import pytest
import torch

from mambamim_nets.bundle import option_kinds as kinds

NO_WORDS = (ValueError, TypeError)  # the rule is stated by the caller


@pytest.mark.parametrize(
    ("convert", "good", "bad"),
    [
        (kinds.whole("", 1, 2).convert, {1: 1, 5.0: 5}, [0, 1.5, True, "1", math.nan, None]),
        (kinds.whole("", 0, 2, high=4).convert, {0: 0, 4: 4}, [5, -1]),
        (kinds.number("", "", 0.5, 0.0, below=1.0).convert, {0: 0, 0.99: 0.99}, [1.0, -0.1, math.inf, "0.5"]),
        (kinds.positive("", 0.1).convert, {1e-9: 1e-9}, [0, -1.0, math.nan]),
        (kinds.choice("", "a", "b").convert, {"a": "a"}, ["c", "A", 1]),
        (kinds.to_switch, {"True": True, "false": False, True: True}, [0, "yes", None]),
        (kinds.name("").convert, {"BTCV": "BTCV"}, ["", " ", "a/b", " a", 3]),
        (kinds.to_fold, {0: 0, "3": 3, "all": "all", "official": "official"}, [-1, 0.5, "some", True]),
        (kinds.to_resume, {"auto": "auto", "true": True, False: False}, ["perhaps", 1]),
    ],
    ids=["whole", "whole with limits", "number", "positive", "choice", "switch", "name", "fold", "resume"],
)
def test_single_values(convert, good, bad):
    for value, wanted in good.items():
        found = convert(value)
        assert found == wanted and type(found) is type(wanted)
    for value in bad:
        with pytest.raises(NO_WORDS):
            convert(value)


@pytest.mark.parametrize(
    ("convert", "good", "bad"),
    [
        (kinds.names("").convert, [["CT"], ("a", "b")], [[], "CT", ["a", "a"], [1], [" "]]),
        (kinds.to_sides, [[1, 2, 3]], [[1, 2], [0, 1, 1], [1.5, 2, 2], "123", 3]),
        (kinds.to_spacing, [[0.01, 1, 50]], [[0.001, 1, 1], [1, 1, 51], [1, 1], [1, 1, math.nan]]),
        (kinds.to_intensity, ["ct", {"_target_": "ScaleIntensityd"}], ["pet", {}, {"keys": "image"}, [0, 1], 3]),
        (kinds.to_axes, [[], [0], [2, 0]], [[3], [0, 0], [-1], ["0"]]),
        (kinds.to_pairs, [[], [["a", "b"]]], ["ab", [["a"]], ["ab"]]),
        (kinds.mapping("", "", item=kinds.to_switch).convert, [{"a": True}], [{}, [], {"a": 1}]),
        (kinds.to_channel_order, [["t1", "t2"], (0,)], ["t1", [], 1]),
    ],
    ids=["names", "sides", "spacing", "intensity", "axes", "pairs", "mapping", "channel_order"],
)
def test_lists_and_tables(convert, good, bad):
    for value in good:
        assert convert(value) == value
    for value in bad:
        with pytest.raises(NO_WORDS):
            convert(value)


def test_whole_sides_that_are_written_as_floats_become_integers():
    assert kinds.to_sides([32.0, 48, 32]) == [32, 48, 32]
    assert all(type(side) is int for side in kinds.to_sides([32.0, 48, 32]))


def test_files_and_folders_say_what_is_in_their_place(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    file, nothing = str(tmp_path / "file"), str(tmp_path / "nothing")
    assert kinds.to_file(file) == file and kinds.to_folder(tmp_path) == str(tmp_path)
    assert kinds.to_data_folder("phantom") == "phantom"
    for convert, value, words in (
        (kinds.to_file, tmp_path, "it is a folder"),
        (kinds.to_file, nothing, "there is none of that name"),
        (kinds.to_data_folder, file, "it is a file"),
        (kinds.to_data_folder, nothing, "it does not exist"),
        (kinds.to_folder, file, "it does not exist"),
    ):
        with pytest.raises(kinds.DetailError, match=words):
            convert(value)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert kinds.to_sources(["~/file", {"path": "~/file", "weight": 2}]) == [file, {"path": file, "weight": 2}]


def test_a_device_is_one_of_this_machine():
    assert kinds.to_device("cpu") == torch.device("cpu")
    for value in ("gpu", "meta", "cuda:99"):
        with pytest.raises(kinds.DetailError, match="this machine has cpu"):
            kinds.to_device(value)
