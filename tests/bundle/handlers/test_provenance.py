"""What results were made with, as the reports beside them say it."""

import hashlib
import re

import torch

from mambamim_nets import __version__
from mambamim_nets.bundle.handlers.provenance import made_with, now


def test_weights_are_known_by_their_digests_and_notes(tmp_path):
    files = [tmp_path / "one.pt", tmp_path / "two.pt"]
    for file in files:
        file.write_bytes(file.name.encode())
    (tmp_path / "two.txt").write_text("a demonstration\n")
    found = made_with([str(file) for file in files], torch.device("cpu"))
    assert found["weights"]["sha256"] == {str(file): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}
    assert found["weights"]["note"] == "a demonstration"
    assert found["versions"]["mambamim_nets"] == __version__ and found["machine"]["device"] == "cpu"


def test_outside_of_a_bundle_there_are_no_settings():
    assert made_with(None)["settings"] == {} and made_with(None)["weights"] == {"sha256": {}, "note": ""}


def test_times_have_a_zone():
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d[+-]\d{4}", now())
