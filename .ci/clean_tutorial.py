"""Leave in docs/tutorial.ipynb what a reader needs of its execution: the outputs, as a terminal would show them.

Times of cells, versions and names of the machine that ran it, and its folder in front of paths, are taken out. Text
that arrived in pieces becomes one, so that a change of the notebook is a readable difference.

    python .ci/clean_tutorial.py            clean the notebook
    python .ci/clean_tutorial.py --check    change nothing; exit with 1 if there is something to clean
"""

import argparse
import sys
from itertools import groupby
from pathlib import Path

import nbformat

REPOSITORY = Path(__file__).resolve().parents[1]
METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
    "execution": {"timeout": 1800},  # seconds that nbmake lets a cell take, on a machine that does other work too
}


def cleaned(text: str, folder: Path) -> str:
    """Return a notebook's text as it is committed.

    Args:
        text: of the .ipynb file.
        folder: where it was executed; paths below it become relative to it.
    """
    notebook = nbformat.reads(text, as_version=4)
    notebook.metadata = nbformat.from_dict(METADATA)
    for cell in notebook.cells:
        cell.metadata = nbformat.from_dict({})
        if cell.cell_type == "code":
            cell.outputs = [output for _, same in groupby(cell.outputs, stream_of) for output in joined(list(same))]
    return nbformat.writes(notebook).replace(f"{folder}/", "") + "\n"


def stream_of(output: nbformat.NotebookNode) -> str | None:
    """Return "stdout" or "stderr"; None for an output that is not text of a stream."""
    return output.get("name")


def joined(outputs: list[nbformat.NotebookNode]) -> list[nbformat.NotebookNode]:
    """Return the pieces of one stream as one output; other outputs as they are."""
    if stream_of(outputs[0]) is None:
        return outputs
    text = "".join(output.text for output in outputs)
    return [nbformat.v4.new_output("stream", name=outputs[0].name, text=text)]


def main() -> int:
    """Clean, or with --check compare; return the exit code."""
    parser = argparse.ArgumentParser(description="Clean the outputs of the tutorial.")
    parser.add_argument("notebook", nargs="?", type=Path, default=REPOSITORY / "docs" / "tutorial.ipynb")
    parser.add_argument("--check", action="store_true", help="change nothing; exit with 1 if it is not clean")
    parser.add_argument("--folder", type=Path, default=REPOSITORY, help="where it was executed: the repository")
    arguments = parser.parse_args()
    before = arguments.notebook.read_text(encoding="utf-8")
    after = cleaned(before, arguments.folder.resolve())
    if before == after:
        return 0
    print("not clean:" if arguments.check else "cleaned:", arguments.notebook)
    if not arguments.check:
        arguments.notebook.write_text(after, encoding="utf-8", newline="\n")
    return 1 if arguments.check else 0


if __name__ == "__main__":
    sys.exit(main())
