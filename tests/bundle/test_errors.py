"""The last words of a run that fails."""

import os
import subprocess
import sys

import pytest
from torch.utils.data import DataLoader

from mambamim_nets.bundle import errors


def wrapped(error, *wrappers):
    """Raise an error inside others, as MONAI does."""
    try:
        if not wrappers:
            raise error
        try:
            wrapped(error, *wrappers[1:])
        except Exception as inner:
            raise RuntimeError(wrappers[0]) from inner
    except Exception as outer:
        return_value = outer
    raise return_value


MONAI_WRAPPERS = (
    "Failed to evaluate ConfigExpression",
    "Failed to instantiate component 'x'",
    "applying transform <y>",
)


def test_the_cause_is_found_below_the_wrappers_of_monai():
    with pytest.raises(RuntimeError) as caught:
        wrapped(ValueError("x.nii.gz is broken; copy it again"), *MONAI_WRAPPERS)
    assert errors.sentence_of(caught.value) == "x.nii.gz is broken; copy it again"


def test_our_own_sentence_is_kept_where_it_has_a_cause_itself():
    ours = ValueError("dataset.json is not valid JSON; download it again")
    ours.__cause__ = ValueError("invalid literal for int()")
    with pytest.raises(RuntimeError) as caught:
        wrapped(ours, *MONAI_WRAPPERS)
    assert errors.sentence_of(caught.value).startswith("dataset.json")


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (KeyError("image"), "KeyError: 'image'"),
        (AssertionError(), "AssertionError"),
        (FileNotFoundError("no such file"), "no such file"),
        (ValueError(), "ValueError"),
    ],
    ids=["key", "without text", "file", "empty value"],
)
def test_a_text_that_says_too_little_comes_with_its_type(error, sentence):
    assert errors.sentence_of(error) == sentence


class Broken:
    """A data set whose only item cannot be read."""

    def __len__(self):
        return 1

    def __getitem__(self, index):
        raise ValueError("x.nii.gz: shape (0,): must be 3-D; leave it out")


def test_an_error_in_a_worker_process_is_told_by_its_own_sentence():
    with pytest.raises(ValueError, match="leave it out") as caught:
        next(iter(DataLoader(Broken(), num_workers=1)))
    assert errors.sentence_of(caught.value) == "x.nii.gz: shape (0,): must be 3-D; leave it out"


def test_the_traceback_goes_to_a_file_that_the_sentence_names(tmp_path):
    errors.keep_tracebacks_in(tmp_path)
    try:
        with pytest.raises(RuntimeError) as caught:
            wrapped(ValueError("fold 7 must be 0..4"), *MONAI_WRAPPERS)
        words = errors.ends_with_a_sentence(caught.value)
    finally:
        errors.keep_tracebacks_in(None)
    (file,) = tmp_path.iterdir()
    assert words == f"fold 7 must be 0..4 (traceback: {file})"
    assert "applying transform" in file.read_text()


def test_debug_mode_shows_the_traceback_and_still_ends_with_the_sentence(monkeypatch, tmp_path):
    monkeypatch.setattr(errors, "run_debug", True)
    errors.keep_tracebacks_in(tmp_path)
    try:
        with pytest.raises(RuntimeError) as caught:
            wrapped(ValueError("fold 7 must be 0..4"), *MONAI_WRAPPERS)
        words = errors.ends_with_a_sentence(caught.value)
    finally:
        errors.keep_tracebacks_in(None)
    assert words.splitlines()[-1] == "fold 7 must be 0..4"
    assert "Traceback" in words
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_written_does_not_hide_the_sentence(tmp_path):
    errors.keep_tracebacks_in(tmp_path / "gone")
    try:
        words = errors.ends_with_a_sentence(ValueError("fold 7 must be 0..4"))
    finally:
        errors.keep_tracebacks_in(None)
    assert words.startswith("fold 7 must be 0..4 (traceback: ")


@pytest.mark.slow
def test_programs_other_than_monai_bundle_keep_their_excepthook():
    code = (
        "import sys; from mambamim_nets.bundle import errors; errors.install(); "
        "assert sys.excepthook is sys.__excepthook__"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env=os.environ)
