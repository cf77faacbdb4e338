"""From the folder of a data set to batches: replaced images, samplers, folders."""

import logging

import pytest
import torch
from monai.transforms import Lambdad

from mambamim_nets.bundle.data.datasets import (
    ReplaceUnreadabled,
    dataset_folder,
    source_sampler,
    training_sampler,
    validation_sampler,
)


def test_an_image_that_cannot_be_read_any_more_is_replaced_by_one_that_was(caplog):
    def read(number):
        if number < 0:
            raise ValueError("broken")
        return number

    transform = ReplaceUnreadabled("image", Lambdad("image", read))
    with pytest.raises(ValueError, match="broken"):  # no other has been read yet
        transform({"image": -1})
    assert transform({"image": 3})["image"] == 3
    with caplog.at_level(logging.WARNING, "mambamim_nets"):
        assert transform({"image": -1})["image"] == 3
    assert "-1" in caplog.text


def test_sources_are_drawn_by_their_weights_whatever_their_sizes():
    items = [{"source": "a", "weight": 1.0}] * 90 + [{"source": "b", "weight": 3.0}] * 10
    sampler = source_sampler(items)
    torch.manual_seed(0)
    drawn = [index for _ in range(40) for index in sampler]
    assert len(drawn) == 40 * len(items)
    assert sum(index >= 90 for index in drawn) / len(drawn) == pytest.approx(0.75, abs=0.03)
    assert source_sampler([{"source": "a", "weight": 2.0}, {"source": "b", "weight": 2.0}]) is None


def test_samplers_of_processes(monkeypatch):
    items = [{"source": "a", "weight": 1.0}] * 6 + [{"source": "b", "weight": 3.0}] * 2
    monkeypatch.setattr(torch.distributed, "is_available", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda *_: 3)
    drawn, order = [], []
    for rank in range(3):
        monkeypatch.setattr(torch.distributed, "get_rank", lambda *_, rank=rank: rank)
        sampler = training_sampler(items, 0, items)
        torch.manual_seed(rank)
        drawn.append([index for _ in range(200) for index in sampler])
        order.append(list(validation_sampler(items)))
        assert len(sampler) == len(training_sampler(items)) == 3
    assert sorted(i for part in order for i in part) == list(range(8)), "every case once"
    assert drawn[0] != drawn[1] != drawn[2]
    for indices in drawn:
        share = sum(index >= 6 for index in indices) / len(indices)
        assert share == pytest.approx(0.75, abs=0.06), "source b has weight 3 of 4"
    with pytest.raises(ValueError, match=r"2 validation cases are too few for 3 processes; use --nproc_per_node=2"):
        validation_sampler(items[:2])


def test_a_data_set_that_is_not_there(tmp_path):
    assert dataset_folder(str(tmp_path), "/bundle", {"kind": "hippocampus", "cases": 3}) == str(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"nothing does not exist; give the folder .* or 'phantom'"):
        dataset_folder(str(tmp_path / "nothing"), "/bundle", {"kind": "hippocampus", "cases": 3})
