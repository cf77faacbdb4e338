"""What a network is, read from the network itself."""

import pytest
from monai.networks.nets import SegResNet

from mambamim_nets import HyMamba, HyMambaSeg, MambaUNETR, NNMambaSeg, VisionMamba
from mambamim_nets.records import SETTINGS, architecture, network_record


@pytest.mark.parametrize(
    ("network", "name"),
    [
        ("mambamim_nets.HyMambaSeg", "hymamba"),
        ("SegResNet", "segresnet"),
        ("mine.OwnNet", "OwnNet"),
        (SegResNet(init_filters=8), "segresnet"),
    ],
)
def test_an_architecture_has_a_name_for_network_and_class(network, name):
    assert architecture(network) == name


@pytest.mark.parametrize(
    ("network", "wanted"),
    [
        (
            HyMambaSeg(2, 5, size="tiny"),
            {"architecture": "hymamba", "size": "tiny", "in_channels": 2, "out_channels": 5},
        ),
        (MambaUNETR(1, 3, size="tiny"), {"architecture": "vanilla_mamba", "size": "tiny", "in_channels": 1}),
        (NNMambaSeg(1, 3, width=16), {"architecture": "nnmamba", "size": "tiny", "in_channels": 1}),
        (NNMambaSeg(1, 3, width=9), {"architecture": "nnmamba", "width": 9}),
        (SegResNet(init_filters=32, in_channels=4, out_channels=3), {"size": "base", "width": 32, "in_channels": 4}),
    ],
    ids=lambda value: value["architecture"] if isinstance(value, dict) and "architecture" in value else "",
)
def test_a_record_says_size_and_channels(network, wanted):
    record = network_record(network)
    assert {key: record[key] for key in wanted} == wanted


def test_an_encoder_is_recorded_as_one():
    for encoder, name in ((HyMamba(1, size="tiny"), "HyMamba"), (VisionMamba(1, size="tiny"), "VisionMamba")):
        record = network_record(encoder)
        assert record["encoder"] == name and record["size"] == "tiny" and "architecture" not in record


def test_the_seed_of_a_shuffle_is_recorded_where_tokens_are_shuffled():
    assert "scan_seed" in SETTINGS and "scan_seed" not in network_record(HyMamba(1, size="tiny", scan="hilbert"))
    record = network_record(HyMamba(1, size="tiny", scan="shuffle", scan_seed=3))
    assert (record["scan"], record["scan_seed"]) == ("shuffle", 3)
