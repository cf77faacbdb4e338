"""docs/tutorial.ipynb: it was executed in order and without errors, what it names exists, and it runs."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from helpers import REPOSITORY, environment, existing

NOTEBOOK = REPOSITORY / "docs" / "tutorial.ipynb"
CLEANER = REPOSITORY / ".ci" / "clean_tutorial.py"
# what begins with a root: /home/..., C:\..., ~/...; the slash of a number such as 1/15 has a digit before it
ABSOLUTE = re.compile(r"(?<![\w.<:/])(?:/[\w.-]+/|[A-Za-z]:[\\/]\w|~/)")


@pytest.fixture(scope="module")
def notebook() -> nbformat.NotebookNode:
    return nbformat.read(NOTEBOOK, as_version=4)


def code_of(notebook: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def texts(cell: nbformat.NotebookNode) -> list[str]:
    """Return every text that a cell printed or showed, without pictures."""
    found = [output.get("text", "") for output in cell.outputs]
    return found + [
        text for output in cell.outputs for kind, text in output.get("data", {}).items() if kind.startswith("text/")
    ]


def commands(notebook: nbformat.NotebookNode) -> list[list[str]]:
    """Return the arguments of every run of a bundle, after `python -m monai.bundle run`."""
    sources = [cell.source.replace("\\\n", "") for cell in code_of(notebook) if cell.source.startswith("%%bash")]
    lines = [shlex.split(line) for source in sources for line in source.splitlines()]
    return [line[4:] for line in lines if line[:4] == ["python", "-m", "monai.bundle", "run"]]


def configurations(command: list[str]) -> list[str]:
    assert command[0] == "--config_file"
    return re.findall(r"[\w./-]+\.json", command[1])


def keys_of(file: Path) -> set[str]:
    return set(json.loads(file.read_text(encoding="utf-8")))


def test_every_cell_was_executed_in_order_and_none_failed(notebook):
    cells = code_of(notebook)
    assert len(cells) > 10
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert [output for cell in cells for output in cell.outputs if output.output_type == "error"] == []
    assert [output.text for cell in cells for output in cell.outputs if output.get("name") == "stderr"] == []


def test_its_outputs_are_of_synthetic_data_and_say_so(notebook):
    printed = "".join(text for cell in code_of(notebook) for text in texts(cell))
    assert "SYNTHETIC scans, not patient data" in printed and "phantom_000" in printed
    assert "hippocampus_0" not in printed, "pictures of real scans have a licence of their own: run make tutorial"
    stated = "".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    assert "no number below says anything about patients" in " ".join(stated.split())


def test_it_is_small_and_shows_pictures(notebook):
    assert NOTEBOOK.stat().st_size < 1.5e6
    outputs = [output for cell in code_of(notebook) for output in cell.outputs]
    assert len([output for output in outputs if "image/png" in output.get("data", {})]) >= 3


def test_it_holds_no_path_of_a_machine(notebook):
    text = [text for cell in notebook.cells for text in [cell.source, *(texts(cell) if "outputs" in cell else [])]]
    found = [line for part in text for line in part.splitlines() if ABSOLUTE.search(line)]
    assert found == []


@pytest.mark.parametrize("text", ["/home/me/data", "source '/mnt/a/b'", "['/tmp/x/y']", r"C:\data", "output=~/x"])
def test_a_path_of_a_machine_is_found(text):
    assert ABSOLUTE.search(text)


@pytest.mark.parametrize("text", ["epoch 1/15:", "build/tutorial", "../README.md", "http://monai.io/a", "3 windows/s"])
def test_other_text_is_no_path_of_a_machine(text):
    assert not ABSOLUTE.search(text)


def test_its_commands_name_files_and_options_that_exist(notebook):
    runs = commands(notebook)
    assert len(runs) >= 6
    for command in runs:
        files = [REPOSITORY / name for name in configurations(command)]
        assert files and all(file.is_file() for file in files), command
        options = {part[2:].split("#")[0] for part in command[2:] if part.startswith("--")}
        assert options - set.union(*map(keys_of, files)) == set(), command
        assert "output_dir" in options, "a bundle must not be written to"


def test_its_prose_wraps_and_its_links_lead_somewhere(notebook):
    prose = [cell.source for cell in notebook.cells if cell.cell_type == "markdown"]
    assert [line for text in prose for line in text.splitlines() if len(line) > 120] == []
    links = [link for text in prose for link in re.findall(r"\]\(([^)#]+)\)", text) if not link.startswith("http")]
    assert links and [link for link in links if not (NOTEBOOK.parent / link).exists()] == []


def test_it_is_committed_clean():
    run = subprocess.run([sys.executable, CLEANER, "--check"], capture_output=True, text=True)
    assert run.returncode == 0, f"run python .ci/clean_tutorial.py:\n{run.stdout}{run.stderr}"


def test_cleaning_joins_streams_and_takes_out_what_is_of_the_machine(tmp_path):
    output = nbformat.v4.new_output
    pieces = [f"reads {tmp_path}/da", "ta/a.nii.gz\n"]
    cell = nbformat.v4.new_code_cell("print(1)", execution_count=1, id="one", metadata={"execution": {"a": "b"}})
    cell.outputs = [output("stream", name="stdout", text=text) for text in pieces]
    cell.outputs += [output("stream", name="stderr", text="careful"), output("stream", name="stdout", text="after it")]
    cell.outputs += [output("display_data", data={"text/plain": text}) for text in ("x", "y")]
    path = tmp_path / "some.ipynb"
    metadata = {"language_info": {"name": "python", "version": "3.11.7"}}
    nbformat.write(nbformat.v4.new_notebook(cells=[cell], metadata=metadata), path)
    command = [sys.executable, CLEANER, path, "--folder", tmp_path]
    assert subprocess.run([*command, "--check"], capture_output=True).returncode == 1
    subprocess.run(command, check=True, capture_output=True)
    assert subprocess.run([*command, "--check"], capture_output=True).returncode == 0
    after = nbformat.read(path, as_version=4)
    assert [texts(after.cells[0])[:3]] == [["reads data/a.nii.gz\n", "careful", "after it"]]
    assert texts(after.cells[0])[-2:] == ["x", "y"]
    assert after.cells[0].metadata == {} and after.metadata.language_info == {"name": "python"}


def executed(path: Path, folder: Path) -> subprocess.CompletedProcess[str]:
    """Execute a notebook by nbmake on synthetic data, in a process of its own with one thread."""
    variables = {key: value for key, value in environment().items() if key != "MAMBAMIM_HIPPOCAMPUS"}
    variables |= {"PYTHONPATH": os.pathsep.join(filter(None, [str(REPOSITORY), os.environ.get("PYTHONPATH")]))}
    command = [sys.executable, "-m", "pytest", "--nbmake", "--overwrite", "-pno:cacheprovider", "-pno:benchmark"]
    return subprocess.run([*command, path], cwd=folder, env=variables, capture_output=True, text=True)


@pytest.mark.slow
def test_it_runs_and_writes_to_its_own_folder_alone(tmp_path):
    """In a copy of what it needs of the repository, which shows what it writes, and from docs as editors start it.

    With fewer epochs, phantoms and windows than in the page: `make tutorial` executes it as it is.
    """
    for bundle in ("pretrain", "msd_seg"):
        shutil.copytree(REPOSITORY / "bundles" / bundle, tmp_path / "bundles" / bundle)
    copy = tmp_path / "docs" / NOTEBOOK.name
    copy.parent.mkdir()
    text = NOTEBOOK.read_text(encoding="utf-8")
    for many, few in (
        ("--train_cases 6", "--train_cases 2"),
        ("--max_epochs 24 --val_interval 24", "--max_epochs 1 --overlap 0"),
        ("--pictures 1", "--pictures 1 --overlap 0"),
        ('else \\"15\\"', 'else \\"1\\"'),
        ("cases=30", "cases=12"),
    ):
        assert many in text
        text = text.replace(many, few)
    copy.write_text(text, encoding="utf-8")
    before = existing(tmp_path.rglob("*"))
    run = executed(copy, tmp_path)
    assert run.returncode == 0, run.stdout[-6000:] + run.stderr[-2000:]
    written = {path for path in tmp_path.rglob("*") if path not in before and "__pycache__" not in path.parts}
    work = tmp_path / "build" / "tutorial"
    assert written and [path for path in written - {work.parent, work} if work not in path.parents] == []
    for name in ("pretrain/encoder.pt", "encoder/eval/summary.md", "scratch/eval/summary.md", "results/volumes.csv"):
        assert (work / name).is_file(), name
    anew = nbformat.read(copy, as_version=4)
    assert [cell.source for cell in anew.cells] == [cell.source for cell in nbformat.reads(text, 4).cells]
    assert "voxel by voxel: True" in "".join(text for cell in code_of(anew) for text in texts(cell))


@pytest.mark.slow
def test_a_command_that_fails_fails_the_notebook(tmp_path):
    """As %%bash has it; after an exclamation mark it would not."""
    source = "%%bash\npython -c 'raise SystemExit(3)'"
    path = tmp_path / "some.ipynb"
    nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source)]), path)
    run = executed(path, tmp_path)
    assert run.returncode == 1 and "non-zero exit status 3" in run.stdout
