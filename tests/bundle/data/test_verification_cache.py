"""What a check of data remembers: only what is still as it was when it was checked."""

import os

import pytest

from mambamim_nets.bundle.data.verification_cache import cache_key, read_cache, signature_of, write_cache


@pytest.fixture
def item(tmp_path):
    for name in ("a", "b", "label"):
        (tmp_path / name).write_text(name)
    return {"image": [str(tmp_path / "a"), str(tmp_path / "b")], "label": tmp_path / "label"}


def test_a_signature_changes_with_every_file(item, tmp_path):
    before = signature_of(item, ["image", "label"])
    assert [os.path.basename(path) for path, *_ in before] == ["a", "b", "label"]
    assert signature_of(item, ["image", "label"]) == before
    (tmp_path / "b").write_text("longer")
    resized = signature_of(item, ["image", "label"])
    os.utime(tmp_path / "label", ns=(1, 1))
    touched = signature_of(item, ["image", "label"])
    assert resized != before and touched != resized
    (tmp_path / "label").unlink()
    assert signature_of(item, ["image", "label"]) is None and signature_of(item, ["image"]) is not None


def test_a_key_is_of_the_rule_and_the_files(item):
    signature = signature_of(item, ["image"])
    assert cache_key(signature, "one") != cache_key(signature, "other")
    assert cache_key(signature, "one") != cache_key(signature[:1], "one")


def test_what_is_written_is_read_again(item, tmp_path):
    clean = {"key": (signature_of(item, ["image"]), ["digest"])}
    write_cache(tmp_path / "check.json", clean)
    assert read_cache(tmp_path / "check.json") == clean


@pytest.mark.parametrize("text", ["", "[]", '{"version": 3}', '{"version": -1, "clean": {"key": [[], []]}}', "{"])
def test_anything_else_is_no_memory(tmp_path, text):
    assert read_cache(tmp_path / "check.json") == {}
    (tmp_path / "check.json").write_text(text)
    assert read_cache(tmp_path / "check.json") == {}
