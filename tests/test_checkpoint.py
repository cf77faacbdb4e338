"""Loading weights: strict, size and channels named, nothing adapted or executed behind one's back."""

import os
import pickle
import re
from pathlib import Path

import pytest
import torch
from helpers import saved

from mambamim_nets import HyMamba, HyMambaSeg, MambaMIM
from mambamim_nets.bundle.weights import trained_network
from mambamim_nets.checkpoint import (
    encoder_state,
    half_precision,
    load_encoder,
    load_other_labels,
    load_weights,
    read_state,
    record_of,
    stamped,
)


@pytest.fixture(scope="module")
def encoder():
    torch.manual_seed(0)
    return HyMamba(in_channels=1, size="tiny")


@pytest.fixture(scope="module")
def base_encoder(tmp_path_factory):
    path = tmp_path_factory.mktemp("base") / "base.pt"
    torch.save(HyMamba(in_channels=1, size="base").state_dict(), path)
    return path


def assert_same(network, state):
    own = network.state_dict()
    assert own.keys() == state.keys()
    for key, value in state.items():
        assert torch.equal(own[key], value), key


def test_all_weights_of_a_network_come_back(tmp_path):
    torch.manual_seed(1)
    network = HyMambaSeg(1, 3, size="tiny")
    path = saved(tmp_path / "network.pt", network.state_dict())
    other = HyMambaSeg(1, 3, size="tiny")
    report = load_weights(other, path)
    assert_same(other, network.state_dict())
    assert report == (str(path), len(network.state_dict()), "", {}, {})
    assert str(report) == f"{len(network.state_dict())} tensors from {path}"


def test_half_precision_halves_the_file_and_keeps_small_tensors_and_metadata(tmp_path):
    torch.manual_seed(1)
    network = HyMambaSeg(1, 3, size="tiny")
    state = stamped(network.state_dict(), {"size": "tiny"})
    large = max(state, key=lambda key: state[key].numel())
    path = saved(tmp_path / "half.pt", half_precision(state))
    full = saved(tmp_path / "full.pt", state)
    assert path.stat().st_size < 0.53 * full.stat().st_size
    held = torch.load(path, weights_only=True)
    assert held[large].dtype == torch.float16 and held._metadata == state._metadata
    assert all(torch.equal(held[key], value) for key, value in state.items() if value.numel() <= 8192)

    other = HyMambaSeg(1, 3, size="tiny")
    assert load_weights(other, path).record == {"size": "tiny"}
    assert {value.dtype for value in [*other.parameters(), *read_state(path).values()]} == {torch.float32}
    for key, value in other.state_dict().items():
        torch.testing.assert_close(value, state[key], rtol=2**-11, atol=2**-25)


def test_half_precision_leaves_what_it_cannot_hold():
    state = {"large": torch.full((9000,), 7e4), "counted": torch.ones(9000, dtype=torch.int64)}
    assert all(half_precision(state)[key] is value for key, value in state.items())


@pytest.mark.parametrize("wrap", ["plain", "network", "checkpoint", "module", "checkpoint of module"])
def test_an_encoder_is_found_in_every_kind_of_file(encoder, tmp_path, wrap):
    state = encoder.state_dict()
    if wrap != "plain":
        torch.manual_seed(2)
        whole = MambaMIM(encoder, decoder_width=32).state_dict()
        state = {f"module.{key}": value for key, value in whole.items()} if "module" in wrap else whole
    if "checkpoint" in wrap:
        state = {"model": state, "epoch": 3}
    network = HyMambaSeg(1, 3, size="tiny")
    before = {key: value.clone() for key, value in network.state_dict().items() if not key.startswith("encoder.")}
    report = load_encoder(network, saved(tmp_path / "file.pt", state))
    assert_same(network.encoder, encoder.state_dict())
    assert report.tensors == len(encoder.state_dict()) and report.adapted == ""
    for key, value in before.items():
        assert torch.equal(network.state_dict()[key], value), key


def test_an_encoder_alone_can_be_the_target(encoder, tmp_path):
    network = HyMamba(in_channels=1, size="tiny")
    load_encoder(network, saved(tmp_path / "file.pt", encoder.state_dict()))
    assert_same(network, encoder.state_dict())


def test_a_network_without_encoder_is_refused(tmp_path, encoder):
    with pytest.raises(ValueError, match="Linear has no encoder"):
        load_encoder(torch.nn.Linear(1, 1), saved(tmp_path / "file.pt", encoder.state_dict()))


def changed(state, how):
    state = dict(state)
    if how == "missing":
        del state["stem.bias"]
    elif how == "unexpected":
        state["stem.gamma"] = torch.zeros(1)
    elif how == "shape":
        state["stem.bias"] = torch.zeros(3)
    else:
        state = {f"backbone.{key}": value for key, value in state.items()}
    return state


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("missing", "missing stem.bias"),
        ("unexpected", "unexpected stem.gamma"),
        ("shape", r"stem.bias is \(3,\) in the file and \(16,\) in the network"),
        ("prefix", "missing stem.weight.* and [0-9]+ more"),
    ],
)
def test_one_wrong_tensor_is_refused_by_name_and_nothing_is_loaded(encoder, tmp_path, how, message):
    network = HyMamba(in_channels=1, size="tiny")
    before = {key: value.clone() for key, value in network.state_dict().items()}
    with pytest.raises(ValueError, match=message) as caught:
        load_encoder(network, saved(tmp_path / "file.pt", changed(encoder.state_dict(), how)))
    assert "file.pt" in str(caught.value)
    assert_same(network, before)


def test_another_size_is_refused_with_the_option_that_fits(base_encoder):
    with pytest.raises(ValueError, match=r"holds size 'base', the network is size 'tiny': use --size base"):
        load_encoder(HyMambaSeg(1, 3, size="tiny"), base_encoder)


def test_another_number_of_classes_is_refused_with_the_remedy(tmp_path):
    path = saved(tmp_path / "network.pt", HyMambaSeg(1, 3, size="tiny").state_dict())
    with pytest.raises(ValueError, match=r"number of classes differs.*out.weight is \(3, 16, 1, 1, 1\)"):
        load_weights(HyMambaSeg(1, 5, size="tiny"), path)


@pytest.mark.parametrize(("held", "wanted"), [(1, 4), (4, 1), (2, 3)])
def test_input_channels_are_adapted_on_request_only_and_reported(tmp_path, held, wanted):
    torch.manual_seed(3)
    source = HyMamba(in_channels=held, size="tiny")
    path = saved(tmp_path / "file.pt", source.state_dict())
    network = HyMamba(in_channels=wanted, size="tiny")
    with pytest.raises(ValueError, match=r"image channels differs; .*adapt_input=True"):
        load_encoder(network, path)
    report = load_encoder(network, path, adapt_input=True)
    assert report.adapted == f"first convolution adapted from {held} to {wanted} input channels"
    assert report.adapted in str(report)
    image = torch.rand(1, 1, 16, 16, 16)
    with torch.no_grad():
        expected = source.stem(image.expand(-1, held, -1, -1, -1))
        found = network.stem(image.expand(-1, wanted, -1, -1, -1))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    rest = {key: value for key, value in source.state_dict().items() if key != "stem.weight"}
    for key, value in rest.items():
        assert torch.equal(network.state_dict()[key], value), key


def test_adapting_changes_nothing_where_channels_agree(encoder, tmp_path):
    network = HyMamba(in_channels=1, size="tiny")
    report = load_encoder(network, saved(tmp_path / "file.pt", encoder.state_dict()), adapt_input=True)
    assert report.adapted == ""
    assert_same(network, encoder.state_dict())


class Harmful:
    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return os.mkdir, (str(self.target),)


def test_code_in_a_file_does_not_run(tmp_path):
    target = tmp_path / "made by code"
    path = saved(tmp_path / "file.pt", {"model": Harmful(target)})
    (tmp_path / "raw.pt").write_bytes(pickle.dumps(Harmful(target)))
    for name in (path, tmp_path / "raw.pt"):
        with pytest.raises(ValueError, match="cannot be read as a state dict of tensors"):
            read_state(name)
    assert not target.exists()


@pytest.mark.parametrize("content", [[1, 2], {}, {"epoch": 3}, {"model": {}}, torch.zeros(2)], ids=str)
def test_a_file_without_tensors_by_name_is_refused(tmp_path, content):
    with pytest.raises(ValueError, match="hold no state dict of tensors"):
        read_state(saved(tmp_path / "file.pt", content))


def test_a_missing_or_broken_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere\.pt do not exist; give the path of a \.pt file"):
        read_state(tmp_path / "nowhere.pt")
    (tmp_path / "broken.pt").write_bytes(b"not a checkpoint")
    with pytest.raises(ValueError, match=r"broken\.pt cannot be read"):
        read_state(tmp_path / "broken.pt")


def test_encoder_state_takes_the_encoders_part_or_all():
    a, b = torch.zeros(1), torch.ones(1)
    assert encoder_state({"encoder.stem": a, "out": b}) == {"stem": a}
    assert encoder_state({"stem": a}) == {"stem": a}


RECORD = {"architecture": "hymamba", "size": "tiny", "task": "BTCV", "spacing": (4, 4, 4.0), "labels": ["spleen"]}


def recorded(tmp_path, wrap=False):
    state = stamped(HyMambaSeg(1, 3, size="tiny").state_dict(), RECORD)
    return saved(tmp_path / "network.pt", {"model": state, "epoch": 1} if wrap else state)


@pytest.mark.parametrize("wrap", [False, True])
def test_a_record_travels_in_the_file_and_changes_nothing_else(tmp_path, wrap):
    path = recorded(tmp_path, wrap)
    assert record_of(read_state(path)) == {**RECORD, "spacing": [4, 4, 4.0]}
    content = torch.load(path, weights_only=True)
    state = content["model"] if wrap else content
    assert all(isinstance(value, torch.Tensor) for value in state.values())
    HyMambaSeg(1, 3, size="tiny").load_state_dict(state)  # as any other tool loads it
    report = load_weights(HyMambaSeg(1, 3, size="tiny"), path, RECORD)
    assert str(report) == f"{len(state)} tensors from {path} (architecture hymamba, size tiny, task BTCV)"
    assert load_encoder(HyMamba(size="tiny"), path).record == report.record


@pytest.mark.parametrize(
    ("key", "value", "remedy"),
    [
        ("architecture", "nnmamba", "leave the file of configs/networks, or --network_def, out"),
        ("size", "base", "give --size tiny"),
        ("task", "AMOS22", "run the bundle of these weights, with its configs/tasks/BTCV.json if it has one"),
        ("spacing", [2, 2, 2], 'give --spacing "[4, 4, 4.0]"'),
        ("labels", ["liver"], "labels is ['spleen'] in the file and ['liver'] in this run"),
    ],
)
def test_weights_that_are_something_else_are_refused(tmp_path, key, value, remedy):
    path, network = recorded(tmp_path), HyMambaSeg(1, 3, size="tiny")
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    with pytest.raises(ValueError, match=re.escape(remedy)) as caught:
        load_weights(network, path, {**RECORD, key: value})
    assert str(path) in str(caught.value)
    assert_same(network, before)


@pytest.mark.parametrize(
    ("kind", "span", "remedy"),
    [
        ("ct", [-1000, 1200], "give --intensity#a_min -1000 --intensity#a_max 1200"),
        ("mr", [1.0, 99.0], "give --intensity#lower 1.0 --intensity#upper 99.0"),
        ("ct_or_mr", [-100, 200], 'give --intensity#hu "[-100, 200]"'),
        ("Other", [0, 1], "give --intensity, the transform, as it was when they were trained"),
    ],
)
def test_weights_of_another_range_of_intensities_name_the_options_that_set_it(tmp_path, kind, span, remedy):
    network = HyMambaSeg(1, 3, size="tiny")
    path = saved(tmp_path / "network.pt", stamped(network.state_dict(), {"intensity": kind, "intensity_range": span}))
    with pytest.raises(ValueError, match=re.escape(remedy)):
        load_weights(network, path, {"intensity": kind, "intensity_range": [-175, 250]})


def test_a_file_without_a_record_is_judged_by_its_tensors_and_a_run_says_so(tmp_path, caplog):
    path = saved(tmp_path / "network.pt", HyMambaSeg(1, 3, size="tiny").state_dict())
    assert record_of(read_state(path)) == {}
    assert load_weights(HyMambaSeg(1, 3, size="tiny"), path, RECORD).record == {}
    trained_network(HyMambaSeg(1, 3, size="tiny"), str(path), RECORD)
    assert "does not say what its weights are" in caplog.text
    caplog.clear()
    trained_network(HyMambaSeg(1, 3, size="tiny"), str(recorded(tmp_path)), RECORD)
    assert "does not say" not in caplog.text


EPS = {"plain": "", "network": "encoder.", "module": "module."}


@pytest.mark.parametrize("wrap", EPS)
@pytest.mark.parametrize(("said", "eps"), [(True, 1e-4), (False, 1e-6)], ids=["new", "former"])
def test_the_eps_of_an_encoder_comes_with_its_weights(tmp_path, wrap, said, eps):
    source = HyMambaSeg(1, 2, size="tiny", norm_eps=1e-4)
    state = {"plain": source.encoder, "network": source, "module": torch.nn.ModuleDict({"module": source})}[wrap]
    state = state.state_dict()
    if not said:
        for entry in state._metadata.values():
            entry.pop("eps", None)
    network = HyMambaSeg(1, 2, size="tiny")
    load_encoder(network, saved(tmp_path / "file.pt", {"model": state}))
    assert {layer.norm1.eps for layer in network.encoder.mamba} == {eps}
    if wrap != "plain":
        whole = HyMambaSeg(1, 2, size="tiny")
        load_weights(whole, tmp_path / "file.pt")
        assert {layer.norm2.eps for layer in whole.encoder.mamba} == {eps}


def test_a_file_without_any_metadata_counts_as_a_former_one(tmp_path, encoder):
    network = HyMamba(in_channels=1, size="tiny")
    load_encoder(network, saved(tmp_path / "file.pt", dict(encoder.state_dict())))
    assert {layer.norm1.eps for layer in network.mamba} == {1e-6}


def test_shipped_weights_keep_their_eps():
    path = Path(__file__).parents[1] / "bundles" / "msd_seg" / "models" / "model.pt"
    network = HyMambaSeg(1, 3, size="tiny")
    network.load_state_dict(torch.load(path, weights_only=True))  # as exports do
    assert {layer.norm1.eps for layer in network.encoder.mamba} == {1e-6}


@pytest.mark.parametrize("held", [True, False])
def test_mamba_in_another_number_of_directions_is_refused_with_the_option(tmp_path, held):
    path = saved(tmp_path / "file.pt", HyMamba(1, "tiny", bidirectional=held).state_dict())
    with pytest.raises(
        ValueError, match=rf"in {1 + held} direction.*use --network_def#bidirectional {str(held).lower()}"
    ):
        load_encoder(HyMambaSeg(1, 2, size="tiny", bidirectional=not held), path)


# --- a network for other labels -------------------------------------------------------------------


def labelled(labels, **facts):
    torch.manual_seed(len(labels))
    network = HyMambaSeg(1, 1 + len(labels), size="tiny")
    return network, {"architecture": "hymamba", "labels": labels, **facts}


def test_a_network_for_other_labels_gives_all_but_the_outputs_of_other_names(tmp_path):
    theirs, record = labelled(["liver", "spleen", "aorta"], task="other")
    path = saved(tmp_path / "other.pt", stamped(theirs.state_dict(), record))
    ours, wanted = labelled(["aorta", "pancreas", "liver"], task="ours")
    random = ours.out.weight.detach().clone()
    report = load_other_labels(ours, path, wanted)
    held, state = theirs.state_dict(), ours.state_dict()
    assert all(torch.equal(state[key], held[key]) for key in held if not key.startswith("out."))
    for tensor in ("out.weight", "out.bias"):
        assert torch.equal(state[tensor][[0, 1, 3]], held[tensor][[0, 3, 1]]), "background, aorta, liver"
    assert torch.equal(state["out.weight"][2], random[2])
    assert report.adapted == "of the last layer background, aorta, liver; pancreas at random"
    assert report.record["task"] == "other" and report.tensors == len(state)


def test_regions_are_outputs_by_name_too(tmp_path):
    facts = {"regions": ["TC", "WT", "ET"]}
    theirs, record = HyMambaSeg(1, 3, size="tiny"), {"labels": ["a", "b", "c"], **facts}
    path = saved(tmp_path / "other.pt", stamped(theirs.state_dict(), record))
    ours = HyMambaSeg(1, 2, size="tiny")
    load_other_labels(ours, path, {"labels": ["a", "b"], "regions": ["WT", "TC"]})
    assert torch.equal(ours.out.weight, theirs.out.weight[[1, 0]])


@pytest.mark.parametrize(
    ("record", "message"),
    [
        (
            {"labels": ["nose", "ear"]},
            r"no label of this run \(background, liver\): its outputs are background, nose",
        ),
        ({"regions": ["WT"], "labels": ["liver"]}, "its outputs are WT; take their encoder alone"),
        ({}, "it does not say what its outputs are; take their encoder alone, with --pretrained_part encoder"),
    ],
)
def test_a_network_without_a_label_of_this_run_is_refused(tmp_path, record, message):
    path = saved(tmp_path / "other.pt", stamped(HyMambaSeg(1, 3, size="tiny").state_dict(), record))
    with pytest.raises(ValueError, match=message):
        load_other_labels(HyMambaSeg(1, 2, size="tiny"), path, {"labels": ["liver"]})


def test_a_network_of_another_kind_for_other_labels_is_refused(tmp_path):
    theirs = HyMambaSeg(1, 2, size="tiny", mamba_depth=1)
    path = saved(tmp_path / "other.pt", stamped(theirs.state_dict(), {"labels": ["liver"]}))
    with pytest.raises(ValueError, match="the file holds 1 Mamba layers, the network has 2"):
        load_other_labels(HyMambaSeg(1, 2, size="tiny"), path, {"labels": ["liver"]})
