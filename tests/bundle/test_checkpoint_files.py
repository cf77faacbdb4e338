"""The files of a training run: written whole or not at all, and read only if they are what their name says."""

import pytest
import torch
from torch import nn

from mambamim_nets.bundle import checkpoint_files
from mambamim_nets.bundle.checkpoint_files import PARTS, holds, load_state, read_checkpoint, save


@pytest.fixture
def state():
    return {**dict.fromkeys(PARTS, 0), "model": {"weight": torch.ones(2, 3)}}


def test_what_is_saved_is_read_again(state, tmp_path):
    save(tmp_path / "last.pt", state)
    held = read_checkpoint(tmp_path / "last.pt", "model_best.pt")
    assert held.keys() == PARTS and torch.equal(held["model"]["weight"], torch.ones(2, 3))
    assert [file.name for file in tmp_path.iterdir()] == ["last.pt"], "no file of another name is left"


@pytest.mark.parametrize("missing", sorted(PARTS))
def test_a_checkpoint_that_lacks_a_part_names_it(state, tmp_path, missing):
    del state[missing]
    save(tmp_path / "last.pt", state)
    with pytest.raises(ValueError, match=rf"last\.pt .*lacks {missing};.*--output_dir.*model_best\.pt"):
        read_checkpoint(tmp_path / "last.pt", "model_best.pt")


@pytest.mark.parametrize("part", ["model", "average"])
def test_weights_that_are_not_finite_are_named(state, tmp_path, part):
    save(tmp_path / "last.pt", {**state, part: {"weight": torch.tensor([1.0, torch.nan])}})
    with pytest.raises(ValueError, match=rf"{part}: .*weight"):
        read_checkpoint(tmp_path / "last.pt", "model_best.pt")


def test_a_disk_that_fills_up_leaves_the_file_of_before(state, tmp_path, monkeypatch):
    path = tmp_path / "last.pt"
    save(path, state)
    before = path.read_bytes()

    def full(content, file):
        file.write(b"the first bytes")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint_files.torch, "save", full)
    with pytest.raises(OSError, match=r"last\.pt cannot be written .*No space left on device"):
        save(path, state)
    assert path.read_bytes() == before and [file.name for file in tmp_path.iterdir()] == ["last.pt"]


def test_weights_of_another_network_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"last\.pt holds another network than this Linear"):
        load_state(nn.Linear(2, 2), nn.Linear(3, 2).state_dict(), tmp_path / "last.pt")


def test_a_file_holds_weights_only_if_every_tensor_is_the_same(tmp_path):
    path, state = tmp_path / "best.pt", {"a": torch.zeros(2), "b": torch.ones(1)}
    assert not holds(path, state), "there is none"
    save(path, state)
    assert holds(path, {key: value.clone() for key, value in state.items()})
    assert not holds(path, {**state, "b": torch.zeros(1)})
    assert not holds(path, {"a": state["a"]})
    path.write_bytes(path.read_bytes()[:-50])
    assert not holds(path, state), "it is damaged"
