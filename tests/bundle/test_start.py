"""The start of a run, its folders: whole runs are in tests/bundles/test_start.py."""

import errno
import os

import pytest

from mambamim_nets.bundle.start import check_folder


def test_a_folder_that_cannot_be_written_is_refused(reliability, tmp_path, monkeypatch):
    def full(dir):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(dir))

    monkeypatch.setattr("tempfile.TemporaryFile", full)
    with pytest.raises(OSError, match="Read-only file system; give another --output_dir") as caught:
        check_folder(str(tmp_path / "out"), "output_dir")
    reliability("Options", "a folder of results that cannot be written", caught.value)
    with pytest.raises(OSError, match="File name too long; give another --output_dir") as caught:
        check_folder(str(tmp_path / ("x" * 300)), "output_dir")
    reliability("Options", "a folder of results with too long a name", caught.value, hide="x{300}")


def test_a_folder_that_is_there_or_can_be_made_is_left_as_it_was(tmp_path):
    check_folder(str(tmp_path / "a" / "b"), "output_dir")
    check_folder(str(tmp_path), "output_dir")
    assert not list(tmp_path.iterdir())
