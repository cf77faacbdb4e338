"""Files of a store: the same bytes for the same voxels, whole or not there."""

import blosc2
import numpy as np

from mambamim_nets.bundle.data.store import volume_path
from mambamim_nets.prepare.write import broken, write_volume


def test_a_volume_is_written_in_blocks_and_always_to_the_same_bytes(tmp_path):
    array = np.random.default_rng(0).integers(-1000, 1000, (100, 30, 97)).astype(np.int16)
    first, second = (write_volume(tmp_path / name, "scan-0123456789abcdef", array) for name in ("a", "b"))
    assert first == second
    path = volume_path(tmp_path / "a", "scan-0123456789abcdef")
    assert path.parent.name == "ef" and path.stat().st_size == first["file_bytes"]
    stored = blosc2.open(str(path))
    assert stored.chunks == (96, 96, 96) or stored.chunks == (96, 30, 96)
    assert max(stored.blocks) == 32
    assert np.array_equal(stored[:], array)


def test_what_is_broken_is_said(tmp_path):
    array = np.arange(27000, dtype=np.int16).reshape(30, 30, 30)
    line = {"id": "scan-00", "shape": [30, 30, 30], **write_volume(tmp_path, "scan-00", array)}
    assert broken(tmp_path, line) == ""
    assert "must be [30, 30, 31]" in broken(tmp_path, {**line, "shape": [30, 30, 31]})
    volume_path(tmp_path, "scan-00").unlink()
    assert "cannot be read" in broken(tmp_path, line)
