"""The settings of a run, read from a configuration, and how two of them differ."""

import pytest

from mambamim_nets.bundle.handlers.identity import Difference, differences, settings_of

CONFIG = {
    "imports": ["$import torch"],
    "size": "tiny",
    "spacing": "$dict(tiny=[2.0, 2.0], base=[1.0, 1.0])[@size]",
    "labels": "$mb.named(['a', 'b'])",
    "amp": "$torch.cuda.is_available()",
    "skip": "true",
    "num_workers": 4,
    "optimizer": {"_target_": "torch.optim.AdamW", "params": "$@network.parameters()", "lr": "@rate", "fused": True},
    "rate": 0.1,
    "loss": "$lambda output, label: output.sum()",
    "train": {
        "handlers": [
            {"_target_": "StatsHandler", "name": "shown"},
            {"_target_": "mambamim_nets.bundle.ClipGradients", "max_norm": 5.0, "folder": "$@output_dir + '/x'"},
        ],
        "dataloader": {"_target_": "DataLoader", "num_workers": "@num_workers", "batch_size": 2, "drop_last": False},
    },
    "output_dir": "runs",
    "run": ["$@train#trainer.run()"],
}
MADE = {"spacing": [2.0, 2.0], "labels": {1: "a", 2: "b"}, "amp": False, "rate": 0.1, "loss": max, "output_dir": "runs"}
MADE |= {"train::handlers::1::folder": "runs/x", "size": "tiny"}


def test_settings_are_values_where_they_are_plain_and_texts_elsewhere():
    assert settings_of(CONFIG, MADE).values == {
        "size": "tiny",
        "spacing": [2.0, 2.0],
        "labels#1": "a",
        "labels#2": "b",
        "skip": True,
        "optimizer#_target_": "torch.optim.AdamW",
        "optimizer#params": "$@network.parameters()",
        "optimizer#lr": 0.1,
        "optimizer#fused": True,
        "rate": 0.1,
        "loss": "$lambda output, label: output.sum()",
        "train#handlers#0#_target_": "mambamim_nets.bundle.ClipGradients",
        "train#handlers#0#max_norm": 5.0,
        "train#handlers#0#folder": "$@output_dir + '/x'",
        "train#dataloader#_target_": "DataLoader",
        "train#dataloader#drop_last": False,
    }


def test_what_only_shows_is_no_setting_also_where_it_is_referred_to():
    class StatsHandler:
        pass

    config = {"shown": {"_target_": "StatsHandler", "name": "x"}, "train": {"handlers": ["@shown", "@other"]}}
    made = {"shown": StatsHandler(), "other": 3}
    assert settings_of(config, made).values == {"shown#_target_": "StatsHandler", "shown#name": "x"} | {
        "train#handlers#0": 3
    }


def test_a_setting_that_only_follows_from_another_is_not_named():
    here = settings_of(CONFIG, MADE)
    there = {**here.values, "size": "base", "spacing": [1.0, 1.0], "training cases": ["a"]}
    found = differences(there, {**here.values, "training cases": ["a"]}, here.made_of)
    assert found == [Difference("size", "base", "tiny")]
    other = {**here.values, "rate": 0.2, "optimizer#lr": 0.2, "training cases": ["a"]}
    (item,) = differences(other, {**here.values, "training cases": ["a"]}, here.made_of)
    assert item.between() == "rate is 0.2 in the checkpoint and 0.1 here"


def test_what_only_one_of_two_has_is_a_difference_between_checkpoints_of_today_only():
    today, early = {"a": 1, "training cases": []}, {"a": 1}
    assert [item.name for item in differences(today, {**today, "b": 2})] == ["b"]
    assert [item.name for item in differences({**today, "b": 2}, today)] == ["b"]
    assert differences(early, {**today, "b": 2}) == [] and differences({**early, "gone": 1}, today) == []
    assert [item.name for item in differences({"data": "/a"}, {"data_root": "/b"})] == ["data_root"]


@pytest.mark.parametrize(
    ("held", "here", "words"),
    [
        (["a", "b", "c"], ["b", "c", "d"], "training cases: a only in the checkpoint, d only here"),
        (["a"], ["a", "b", "c", "d", "e"], "training cases: b, c, d and 1 more only here"),
        ("9 without names", ["a"], "training cases is 9 without names in the checkpoint and ['a'] here"),
    ],
    ids=["both", "one", "unnamed"],
)
def test_cases_that_differ_are_named(held, here, words):
    assert Difference("training cases", held, here).between() == words
