"""Runs are started in order, several at a time, once; failures do not stop the others; Ctrl-C stops them all."""

import json
import threading
import time
from dataclasses import replace

import pytest

from mambamim_nets.reproduce import runner
from mambamim_nets.reproduce.plan import make_plan
from mambamim_nets.reproduce.runner import Launcher, _left, duration, execute, threads_each, typed


@pytest.fixture
def plan(budget):
    made = make_plan("mask_ratio", budget(seeds=(0, 1)), ["w/o pretrained", "mask 25 %", "mask 75 %"])
    for path, content in made.lists.items():
        path.parent.mkdir(parents=True)
        path.write_text(content)
    return made


def run(plan, launch, jobs=1, **options):
    said: list[str] = []
    failed = execute(plan.runs, launch, jobs, say=said.append, **options)
    return {run.name: why for run, why in failed.items()}, "\n".join(said)


def test_everything_runs_once_and_in_order(plan, fake):
    first, changes = fake(), []
    failed, said = run(plan, first, changed=lambda: changes.append(1))
    assert not failed and len(changes) == 8
    scratch = [(f"hymamba_from_scratch_fold0_seed{seed}", step) for seed in (0, 1) for step in ("train", "evaluate")]
    assert first.started[:5] == [*scratch, ("mask_ratio-0.25_fold0_seed0", "pretrain")]
    assert len(first.started) == 2 + 6 * 2 and first.most == 1
    assert "8 runs: 0 finished before, 8 to do" in said and "8 of 8 runs finished" in said
    record = plan.runs[0].record()
    assert record["settings"] == plan.runs[0].settings() and {"seconds", "date", "machine", "versions"} <= set(record)
    again = fake()
    failed, said = run(plan, again)
    assert not failed and not again.started and "8 finished before, 0 to do" in said


def test_runs_share_the_machine(plan, fake):
    several = fake(together=3)
    assert not run(plan, several, jobs=3)[0]
    assert several.most == 3


def test_a_pretraining_counts_as_finished_when_it_has_ended(plan, fake):
    stopped = fake(**{"mask_ratio-0.25_fold0_seed0": 1})
    run(plan, stopped)
    folder = plan.budget.output / "pretrain" / "mask_ratio-0.25_fold0_seed0"
    assert (folder / "encoder.pt").is_file(), "of an epoch before the failure"
    again = fake()
    run(plan, again)
    kept = "hymamba_from_mask_ratio-0.25_seed0_fold0_seed"
    assert again.started == [
        ("mask_ratio-0.25_fold0_seed0", "pretrain"),
        *((f"{kept}{seed}", step) for seed in (0, 1) for step in ("train", "evaluate")),
    ]


def test_a_failed_run_is_reported_with_its_log_and_the_others_go_on(plan, fake):
    broken = fake(**{"mask_ratio-0.25_fold0_seed0": 3, "hymamba_from_scratch_fold0_seed1": 1})
    failed, said = run(plan, broken, jobs=2)
    why = {name.split("/")[1]: text for name, text in failed.items()}
    assert sorted(why) == [
        "hymamba_from_mask_ratio-0.25_seed0_fold0_seed0",
        "hymamba_from_mask_ratio-0.25_seed0_fold0_seed1",
        "hymamba_from_scratch_fold0_seed1",
        "mask_ratio-0.25_fold0_seed0",
    ]
    assert why["mask_ratio-0.25_fold0_seed0"].startswith("exit status 3, log ")
    waited = why["hymamba_from_mask_ratio-0.25_seed0_fold0_seed0"]
    assert waited.startswith("not started, because pretrain/mask_ratio-0.25")
    assert "    ValueError: the reason" in said and "4 of 8 runs finished" in said
    assert ("hymamba_from_scratch_fold0_seed1", "evaluate") not in broken.started


def test_an_end_without_result_is_a_failure(plan, fake):
    class Forgetful(fake):
        def __call__(self, arguments, log):
            status = super().__call__(arguments, log)
            for run in plan.runs:
                run.result.unlink(missing_ok=True)
            return status

    failed, _ = run(plan, Forgetful())
    assert all("no metrics.csv was written" in why for name, why in failed.items() if "scratch" in name)
    assert len(failed) == 8


def test_interrupting_ends_what_runs_and_keeps_it(plan, fake):
    endless = fake(hymamba_from_scratch_fold0_seed1=None)

    def interrupt(text):
        if "started   pretrain/" in text:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        execute(plan.runs, endless, 2, say=interrupt)
    assert endless.ended == ["hymamba_from_scratch_fold0_seed1"]
    for run_ in plan.runs:
        run_.check()
    again = fake()
    assert not run(plan, again)[0]
    assert ("hymamba_from_scratch_fold0_seed0", "train") not in again.started


def test_a_removed_pretraining_is_not_repeated_for_nothing(plan, fake):
    run(plan, fake())
    folder = plan.budget.output / "pretrain" / "mask_ratio-0.25_fold0_seed0"
    for path in folder.iterdir():
        path.unlink()
    again = fake()
    assert not run(plan, again)[0] and not again.started


@pytest.mark.parametrize(("given", "expected"), [("", 4), ("1", 1), ("6", 6), ("3,2", 3), ("0", 4), ("many", 4)])
def test_runs_take_the_threads_that_the_user_gives_or_share_the_cores(given, expected, monkeypatch):
    monkeypatch.setattr(runner, "cores", lambda: 9)
    monkeypatch.setenv("OMP_NUM_THREADS", given)
    assert threads_each(2) == expected
    monkeypatch.delenv("OMP_NUM_THREADS")
    assert [threads_each(jobs) for jobs in (1, 2, 9, 20)] == [9, 4, 1, 1]


@pytest.mark.slow
def test_a_command_runs_in_its_own_process_with_its_threads_and_log(tmp_path):
    config = tmp_path / "config.json"
    config.write_text(
        json.dumps({"imports": ["$import os"], "run": ["$print('threads', os.environ['OMP_NUM_THREADS'], @a)", "$1/0"]})
    )
    log = tmp_path / "run.log"
    log.write_text("of an earlier start\n")
    assert Launcher(3)(["--config_file", str(config), "--a", "[1, 2]"], log) == 1
    text = log.read_text()
    assert text.startswith("of an earlier start\n") and "threads 3 [1, 2]" in text and "ZeroDivisionError" in text


def test_stopping_ends_a_command_and_starts_no_more(tmp_path):
    launch, status = Launcher(1), []
    worker = threading.Thread(target=lambda: status.append(launch(["--config_file", "nowhere.json"], tmp_path / "log")))
    worker.start()
    while not launch._running:
        time.sleep(0.01)
    launch.stop()
    worker.join(60)
    assert status == [-15] and not launch._running
    assert launch(["--config_file", "nowhere.json"], tmp_path / "log") == -15


def test_the_time_left_is_that_of_runs_of_the_same_kind(plan):
    before = next(run for run in plan.runs if run.name.startswith("pretrain/"))
    after = plan.runs[0]
    first, second, third, fourth = (replace(run, name=f"{run.name} {n}") for n in (1, 2) for run in (after, before))
    todo = {first: 0.0, third: 40.0, second: 0.0, fourth: 90.0}  # 100, 60, 20 and, later than usual, 0 s left
    took = {after: 90.0, replace(after, name="other"): 110.0}
    assert _left(todo, took | {before: 20.0}, jobs=3) == ", about 60 s left"
    assert _left(todo, took, jobs=3) == ", time left not known yet"


@pytest.mark.parametrize(
    ("seconds", "words"), [(0.4, "0 s"), (89, "89 s"), (90, "2 min"), (3599, "60 min"), (12000, "3 h 20 min")]
)
def test_durations_are_readable(seconds, words):
    assert duration(seconds) == words


def test_commands_can_be_typed_again():
    assert typed(["m", "--a", "['x', 'y']", "$1"]) == "python -m m --a \"['x', 'y']\" '$1'"
