"""`python -m mambamim_nets.reproduce --table mask_ratio --data DIR`, or `make reproduce TABLE=mask_ratio DATA=DIR`."""

import argparse
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mambamim_nets.command_line import INTERRUPTED
from mambamim_nets.reproduce.plan import Budget, Plan, make_plan, tables
from mambamim_nets.reproduce.report import write
from mambamim_nets.reproduce.runner import Launch, Launcher, execute, listed, terminable, threads_each, typed

FAILED, WRONG = 1, 2  # exit statuses


def parser() -> argparse.ArgumentParser:
    """Return the options; their defaults are those of `tables.json`."""
    make = argparse.ArgumentParser(
        prog="python -m mambamim_nets.reproduce",
        description="Run the rows of a paper's table on a data set, and write them beside the paper's numbers. The same"
        " command again continues where the last one stopped.",
        epilog="tables: " + "; ".join(f"{name}: {table['title']}" for name, table in tables()["tables"].items()),
    )
    add: Callable[..., Any] = make.add_argument
    add("--table", default="", help="which table, see below")
    add("--data", default="", help="folder of the data set, as downloaded")
    add("--bundle", help="segmentation bundle (default: %(default)s)")
    add("--task", help="its task (default: %(default)s; of another bundle, its only one)")
    add("--size", choices=("tiny", "base"), help="of the networks (default: %(default)s); base is the paper's")
    add("--folds", "--fold", help="held-out folds, such as 0,1 (default: %(default)s)")
    add("--fold_file", type=Path, help="JSON of folds (default: what the data set or the bundle has, else made)")
    add("--seeds", help="of fine-tuning, such as 0,1,2 (default: %(default)s)")
    add("--pretrain_seeds", help="of pre-training; each with all --seeds (default: %(default)s)")
    add("--train_cases", type=int, help="labelled training cases, 0: all (default: %(default)s)")
    add("--finetune_epochs", type=int, help="(default: %(default)s)")
    add("--pretrain_epochs", type=int, help="(default: %(default)s)")
    add("--finetune", action="append", metavar="KEY=VALUE", help="further option of every fine-tuning; repeatable")
    add("--pretrain", action="append", metavar="KEY=VALUE", help="further option of every pre-training; repeatable")
    add("--only", action="append", metavar="LABEL", help="run this row only; repeatable")
    add(
        "--jobs",
        type=int,
        help="runs at a time, which share the cores unless OMP_NUM_THREADS is set (default: %(default)s)",
    )
    add("--output", type=Path, help="folder of runs and tables (default: %(default)s)")
    add(
        "--results",
        type=Path,
        help="folder of the results of every fine-tuning, a few kB each; what is there is not run again (default:"
        " results in the output folder)",
    )
    add("--bundles", type=Path, default=Path("bundles"), help="folder of the bundles (default: %(default)s)")
    add("--dry_run", action="store_true", help="print the commands and run nothing")
    make.set_defaults(**tables()["defaults"], finetune=[], pretrain=[], only=[])
    return make


def budget_of(options: argparse.Namespace) -> Budget:
    """Check the options and return the budget.

    Raises:
        FileNotFoundError: a folder or file does not exist.
        ValueError: an option is unknown or out of range.
    """
    known = tables()
    if options.table not in known["tables"]:
        raise ValueError(
            f"--table {options.table!r} is unknown; it must be one of {', '.join(known['tables'])}"
            " (make reproduce TABLE=mask_ratio DATA=/path/to/data)"
        )
    if not options.data:
        raise ValueError(
            "--data is missing: name the folder of the data set (make reproduce TABLE=mask_ratio DATA=/path/to/data)"
        )
    if not Path(options.data).expanduser().is_dir():
        raise FileNotFoundError(f"--data {options.data} does not exist; name the folder of the data set as downloaded")
    if not options.bundles.is_dir():
        raise FileNotFoundError(
            f"--bundles {options.bundles} does not exist; start from the repository's root or name the folder"
        )
    if options.fold_file and not options.fold_file.is_file():
        raise FileNotFoundError(f"--fold_file {options.fold_file} does not exist; name a JSON file of folds")
    for name, path in (("data", options.data), ("output", options.output), ("bundles", options.bundles)):
        if "#" in str(Path(path).resolve()):
            raise ValueError(
                f"--{name} {path} contains #, which MONAI's configuration parser alters; rename the folder"
            )
    read = known["pretrain_options"]
    if options.bundle not in read:
        raise ValueError(f"--bundle {options.bundle!r} is unknown; it must be one of {', '.join(read)}")
    tasks = list(read[options.bundle])
    task = tasks[0] if len(tasks) == 1 else options.task
    if task not in tasks:
        raise ValueError(f"--task {task!r} is unknown to {options.bundle}; it must be one of {', '.join(tasks)}")
    for name, least in (("train_cases", 0), ("finetune_epochs", 1), ("pretrain_epochs", 1), ("jobs", 1)):
        if getattr(options, name) < least:
            raise ValueError(f"--{name} {getattr(options, name)} must be at least {least}")
    output = options.output.expanduser().resolve()
    return Budget(
        data=Path(options.data).expanduser().resolve(),
        output=output,
        results=options.results.expanduser().resolve() if options.results else output / "results",
        bundles=options.bundles,
        bundle=options.bundle,
        task=task,
        size=options.size,
        folds=_folds(options.folds),
        seeds=_seeds("seeds", options.seeds),
        pretrain_seeds=_seeds("pretrain_seeds", options.pretrain_seeds),
        train_cases=options.train_cases,
        finetune_epochs=options.finetune_epochs,
        pretrain_epochs=options.pretrain_epochs,
        pretrain=_pairs("pretrain", options.pretrain),
        finetune=_pairs("finetune", options.finetune),
        fold_file=options.fold_file.resolve() if options.fold_file else None,
    )


def _folds(text: str) -> tuple[int | str, ...]:
    parts = list(dict.fromkeys(part.strip() for part in text.split(",")))
    if not all(part.isdecimal() or part == "official" for part in parts):
        raise ValueError(
            f"--folds {text!r} must be numbers such as 0,1, or official; fold all has nothing to measure on"
        )
    return tuple(int(part) if part.isdecimal() else part for part in parts)


def _seeds(name: str, text: str) -> tuple[int, ...]:
    parts = list(dict.fromkeys(part.strip() for part in text.split(",")))
    if not all(part.isdecimal() for part in parts):
        raise ValueError(f"--{name} {text!r} must be whole numbers such as 0,1,2")
    return tuple(map(int, parts))


def _pairs(name: str, texts: Sequence[str]) -> dict[str, str]:
    for text in texts:
        if "=" not in text[1:]:
            raise ValueError(f"--{name} {text!r} must be KEY=VALUE, such as amp=true")
    return dict(text.split("=", 1) for text in texts)


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Keep a second driver out of the output folder, where the system can."""
    try:
        import fcntl
    except ImportError:  # Windows
        yield
        return
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(
                f"another reproduce is at work in {folder}; wait for it, or give another --output"
            ) from None
        yield


def main(arguments: Sequence[str] | None = None, launch: Launch | None = None) -> int:
    """Run a table; return the exit status: 0 all well, 1 a run failed, 2 wrong options, 130 interrupted.

    Args:
        arguments: of the command line.
        launch: runs the commands; None: each in a process of its own.
    """
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    options = parser().parse_args(arguments)
    try:
        budget = budget_of(options)
        plan = make_plan(options.table, budget, options.only)
        plan.check()
        if options.dry_run:
            print(listed(plan.runs))
            return 0
        with _alone(budget.output), terminable():
            return _run(plan, typed(["mambamim_nets.reproduce", *arguments]), options.jobs, launch)
    except (ValueError, FileNotFoundError) as error:
        print(f"error: {error}", file=sys.stderr)
        return WRONG
    except KeyboardInterrupt:
        print("\ninterrupted; the same command again continues from here", file=sys.stderr)
        return INTERRUPTED


def _run(plan: Plan, command: str, jobs: int, launch: Launch | None) -> int:
    threads = threads_each(jobs)
    for path, content in plan.lists.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content, encoding="utf-8")

    def report() -> None:
        write(plan, command, jobs, threads)
        labels = {cell.label for cell in plan.cells}
        undone = {cell.label for cell in plan.cells if not cell.run.finished()}
        print(
            f"rows done {len(labels) - len(undone)} of {len(labels)}: {plan.budget.output / plan.name}.md", flush=True
        )

    report()
    failed = execute(plan.runs, launch or Launcher(threads), jobs, report, lambda text: print(text, flush=True))
    for run, why in failed.items():
        print(f"{run.name}: {why}", file=sys.stderr)
    if failed:
        print(f"{len(failed)} runs failed; the same command again tries these only", file=sys.stderr)
    return FAILED if failed else 0


if __name__ == "__main__":
    os.environ.setdefault("PYTHONUNBUFFERED", "1")
    sys.exit(main())
