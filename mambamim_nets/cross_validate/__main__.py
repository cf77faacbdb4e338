"""`python -m mambamim_nets.cross_validate --bundle bundles/msd_seg --dataset_dir DIR`."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

from mambamim_nets.bundle.config import flag
from mambamim_nets.bundle.files import only_run
from mambamim_nets.command_line import INTERRUPTED, call
from mambamim_nets.cross_validate.outcome import check_outcome
from mambamim_nets.cross_validate.report import conclude
from mambamim_nets.cross_validate.runs import CrossValidation, cross_validation
from mambamim_nets.reproduce.runner import Launch, Launcher, execute, listed, terminable, threads_each, typed

__all__ = ["main", "validate"]

FAILED, WRONG = 1, 2  # exit statuses


def command_with(launch: Launch | None = None) -> Callable[..., int]:
    """Return the function that the command line calls, which returns the exit status.

    Args:
        launch: runs the commands; None: each in a process of its own.
    """

    def cross_validate(
        bundle: str,
        dataset_dir: str | None = None,
        task: str | None = None,
        folds: Any = (0, 1, 2, 3, 4),
        jobs: int = 1,
        candidates: Any = "scratch",
        output_dir: str | None = None,
        dry_run: bool = False,
        overwrite: bool = False,
        report: bool = True,
        **options: Any,
    ) -> int:
        """Train the folds that are missing, choose by what was found out of fold, and write report and ensemble.

        The same command again continues where the last one stopped. Any other option is handed to training, such as
        --max_epochs 100 or --roi_size "[96,96,96]".

        Args:
            bundle: folder of a segmentation bundle.
            dataset_dir: folder of the data set; else what the bundle's train.json says.
            task: of a bundle with several, such as Task09_Spleen.
            folds: which to train, such as 0,1,2.
            jobs: runs at a time, which share the cores unless OMP_NUM_THREADS is set.
            candidates: what to compare: scratch, tiny, base, pretrained=encoder.pt, networks/nnmamba.json or
                option=value; parts joined by + are one candidate, such as scratch,base+pretrained=encoder.pt. The
                first is kept unless another is better.
            output_dir: folder of runs and reports; else runs/cross_validation in the bundle.
            dry_run: print the commands and run nothing.
            overwrite: replace files of the bundle that were changed since they were written.
            report: false trains and evaluates only, for jobs of a cluster that have folds of their own and one
                output_dir; when all have ended, the command for all folds writes report and ensemble.
            **options: of training.
        """
        work = cross_validation(bundle, dataset_dir, task, _listed(folds), _listed(candidates), output_dir, options)
        switches = flag(dry_run, "--dry_run"), flag(overwrite, "--overwrite"), flag(report, "--report")
        return validate(work, jobs, *switches, launch)

    return cross_validate


def _listed(value: Any) -> list[Any]:
    """Return a list that the command line may give as one value or, joined by commas, as a text."""
    if isinstance(value, str):
        return [part for part in value.split(",") if part.strip()]
    return list(value) if isinstance(value, Sequence) else [value]


def validate(
    work: CrossValidation,
    jobs: int = 1,
    dry_run: bool = False,
    overwrite: bool = False,
    report: bool = True,
    launch: Launch | None = None,
) -> int:
    """Run what is missing, and conclude unless there is to be no report; return the exit status.

    Raises:
        ValueError: jobs is no whole number of at least 1, a folder holds other runs, the bundle other files, or
            another process is at work on one of the folds or on the report.
    """
    if isinstance(jobs, bool) or not isinstance(jobs, int) or jobs < 1:
        raise ValueError(f"--jobs {jobs} must be a whole number of at least 1")
    for run in work.runs:
        run.check()
    if report:
        check_outcome(work, overwrite)
    if dry_run:
        print(listed(work.runs))
        return 0
    if report:
        only_run(work.folder, "cross-validation")
    for run in work.runs:
        if not run.finished():
            only_run(work.folder, run.name.replace("/", "_"))
    with terminable():
        launch = launch or Launcher(threads_each(jobs))
        failed = execute(work.runs, launch, jobs, say=lambda text: print(text, flush=True))
    if failed:
        print(f"{len(failed)} runs failed; the same command again tries these only", file=sys.stderr)
        return FAILED
    if not report:
        print(f"{len(work.runs)} runs finished; the command for all folds, without --report false, writes the report")
        return 0
    print(conclude(work, typed(["mambamim_nets.cross_validate", *sys.argv[1:]]), overwrite))
    print(f"report: {work.folder / 'summary.md'}")
    return 0


def main(arguments: Sequence[str] | None = None, launch: Launch | None = None) -> int:
    """Cross-validate; return the exit status: 0 all well, 1 a run failed, 2 wrong options, 130 interrupted.

    Args:
        arguments: of the command line.
        launch: runs the commands; None: each in a process of its own.
    """
    try:
        status: int = call(command_with(launch), "python -m mambamim_nets.cross_validate", arguments)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return WRONG
    except KeyboardInterrupt:
        print("\ninterrupted; the same command again continues from here", file=sys.stderr)
        return INTERRUPTED
    return status


if __name__ == "__main__":
    os.environ.setdefault("PYTHONUNBUFFERED", "1")
    sys.exit(main())
