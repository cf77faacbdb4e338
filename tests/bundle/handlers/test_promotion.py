"""Weights take the place of a bundle's own only if they are better, and nothing is lost."""

from types import SimpleNamespace

import pytest
import torch

from mambamim_nets import HyMambaSeg
from mambamim_nets.bundle.handlers.promotion import promote
from mambamim_nets.checkpoint import load_weights, stamped

pytestmark = pytest.mark.usefixtures("all_narrow")


@pytest.fixture
def network():
    return HyMambaSeg(1, 2, size="tiny")


def save(path, network, mark):
    """Write weights whose "Dice" is ``mark``: the evaluator below reads it from the last bias."""
    state = {key: value.clone() for key, value in network.state_dict().items()}
    state["out.bias"].fill_(mark)
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(state, path)
    return str(path)


def run(network, candidate, shipped):
    def evaluate():
        evaluated.append(report.weights)
        drawn.append(report.pictures)
        report.pictures = 0
        assert mark_of(report.weights) == float(network.out.bias[0].detach()), "the report names what is evaluated"

    evaluated, drawn = [], []
    report = SimpleNamespace(table=SimpleNamespace(mean_dice=lambda: float(network.out.bias[0].detach())), pictures=3)
    report.evaluates = lambda path: setattr(report, "weights", path)
    installed = promote(SimpleNamespace(run=evaluate), network, report, candidate, shipped)
    assert evaluated[-1] == candidate and set(drawn) == {3}, "what is left is the candidate's"
    return installed


def mark_of(path):
    return float(torch.load(path, weights_only=True)["out.bias"][0])


@pytest.mark.parametrize("mark", [0.4, 0.5])
def test_weights_that_are_not_better_change_nothing(network, tmp_path, mark):
    candidate, shipped = (
        save(tmp_path / "run" / "a.pt", network, mark),
        save(tmp_path / "models" / "m.pt", network, 0.5),
    )
    assert run(network, candidate, shipped) is False
    assert mark_of(shipped) == 0.5 and [p.name for p in (tmp_path / "models").iterdir()] == ["m.pt"]


def test_better_weights_are_installed_and_the_old_ones_kept(network, tmp_path):
    shipped = save(tmp_path / "models" / "model.pt", network, 0.25)
    (tmp_path / "models" / "model.txt").write_text("the old ones")
    for mark in (0.5, 0.75):  # twice on one day
        assert run(network, save(tmp_path / "run" / "best.pt", network, mark), shipped) is True
        assert mark_of(shipped) == mark
    note = (tmp_path / "models" / "model.txt").read_text()
    assert "best.pt" in note and "0.7500" in note and "not for diagnosis" in note
    kept = sorted((tmp_path / "models").glob("model_until_*.pt"))
    assert sorted(map(mark_of, kept)) == [0.25, 0.5]
    assert "the old ones" in [p.read_text() for p in (tmp_path / "models").glob("model_until_*.txt")]
    assert mark_of(tmp_path / "run" / "best.pt") == 0.75, "the run keeps its own"


def test_a_bundle_without_weights_gets_them(network, tmp_path):
    shipped = tmp_path / "models" / "model.pt"
    assert run(network, save(tmp_path / "best.pt", network, 0.1), str(shipped)) is True
    assert mark_of(shipped) == pytest.approx(0.1)


def test_installed_weights_are_in_half_precision_and_keep_their_record(network, tmp_path):
    state = stamped(network.state_dict(), {"task": "organs"})
    torch.save(state, tmp_path / "best.pt")
    shipped = tmp_path / "models" / "model.pt"
    shipped.parent.mkdir()
    run(network, str(tmp_path / "best.pt"), str(shipped))
    assert {value.dtype for value in torch.load(shipped, weights_only=True).values()} == {torch.float16, torch.float32}
    assert load_weights(network, shipped).record == {"task": "organs"}


def test_a_candidate_that_does_not_exist_changes_nothing(network, tmp_path):
    shipped = save(tmp_path / "models" / "model.pt", network, 0.5)
    with pytest.raises(FileNotFoundError):
        run(network, str(tmp_path / "nowhere.pt"), shipped)
    assert mark_of(shipped) == 0.5


def test_an_ensemble_is_no_candidate(network, tmp_path):
    files = [save(tmp_path / f"fold{number}" / "a.pt", network, 0.5) for number in range(2)]
    with pytest.raises(ValueError, match=r"promote\.json compares one file of weights; give one"):
        run(network, files, str(tmp_path / "model.pt"))
    assert not (tmp_path / "model.pt").exists()
