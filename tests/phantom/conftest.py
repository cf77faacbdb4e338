"""A label map of organs, and the anatomy that is read from it."""

from pathlib import Path

import pytest
from painted_maps import BTCV, SPACING, write_organs

from mambamim_nets.phantom.anatomies import Anatomy, read_anatomy


@pytest.fixture(scope="session")
def organs(tmp_path_factory) -> Path:
    return write_organs(tmp_path_factory.mktemp("organs"))


@pytest.fixture(scope="session")
def anatomy(organs) -> Anatomy:
    return read_anatomy(organs, BTCV, SPACING)
