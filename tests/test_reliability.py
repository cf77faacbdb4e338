"""The page of what is refused: it holds what happened, and nothing else."""

from types import SimpleNamespace

import pytest
from helpers import REPOSITORY
from reliability import Rows


def made(fault="fold 9", words="fold 9 must be 0..4", area="Options", kind="refused"):
    rows = Rows({})
    rows.add(area, fault, kind, words, "", "test")
    return rows


def test_a_page_is_read_as_it_was_written(tmp_path):
    rows = made(words="WARNING mambamim_nets: /a/b c|d (x); see ~/e/f.nii.gz (traceback: /tmp/x.log)", kind="warned")
    rows.write(tmp_path / "page.md", whole=True)
    again = Rows.read(tmp_path / "page.md")
    assert again.page == rows.made
    assert again.page["Options", "fold 9"].words == "…/b c|d (x); see …/f.nii.gz"


def test_a_row_that_says_something_else_now_fails(tmp_path):
    made().write(tmp_path / "page.md", whole=True)
    rows = Rows.read(tmp_path / "page.md")
    rows.add("Options", "fold 9", "refused", "fold 9 is wrong", "", "test")
    with pytest.raises(AssertionError, match="out of date"):
        rows.check("Options", "fold 9")


def test_a_row_that_no_test_makes_is_found(tmp_path):
    made().write(tmp_path / "page.md", whole=True)
    assert Rows.read(tmp_path / "page.md").unseen() == ["Options: fold 9"]


def test_part_of_the_tests_writes_its_rows_among_the_others(tmp_path):
    made().write(tmp_path / "page.md", whole=True)
    rows = Rows.read(tmp_path / "page.md")
    rows.add("Data sets", "no case", "refused", "names no labelled case", "", "test")
    rows.write(tmp_path / "page.md", whole=False)
    assert len(Rows.read(tmp_path / "page.md").page) == 2


def test_two_tests_do_not_make_the_same_row():
    rows = made()
    with pytest.raises(AssertionError, match="two tests make the row"):
        rows.add("Options", "fold 9", "refused", "", "", "second")


def test_rows_of_workers_are_gathered_and_a_crashed_one_counts_as_left_out(request):
    conftest = request.config.pluginmanager.get_plugin(str(REPOSITORY / "tests" / "conftest.py"))
    rows = [list(row) for row in made().made.values()]
    config = SimpleNamespace(rows=Rows({}), left_out=False)
    conftest.pytest_testnodedown(SimpleNamespace(config=config, workeroutput={"rows": rows, "left_out": False}))
    assert config.rows.made == made().made and config.left_out is False
    conftest.pytest_testnodedown(SimpleNamespace(config=config))
    assert config.left_out is True, "so that no row is called missing"


def test_a_fold_that_does_not_exist(bundle_run, reliability):
    reliability("Data sets", "a fold that the data set does not have", bundle_run("msd_seg", fold=9))
