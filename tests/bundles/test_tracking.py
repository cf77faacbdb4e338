"""Curves in MLflow by one option, through MONAI's handler: with a stub of its client, and with mlflow where it is."""

import importlib.util
import types

import monai.handlers.mlflow_handler as of_monai
import pytest

pytestmark = pytest.mark.usefixtures("all_narrow")

EPOCHS = 2


class Client:
    """What MONAI's handler needs of MLflow's client: it keeps what is logged."""

    logged: list = []  # noqa: RUF012
    runs: list = []  # noqa: RUF012

    def __init__(self, tracking_uri=None):
        self.uri = tracking_uri

    def get_experiment_by_name(self, name):
        return types.SimpleNamespace(experiment_id=name, lifecycle_stage="active")

    def search_runs(self, experiment):
        return self.runs

    def get_run(self, run):
        return next(found for found in self.runs if found.info.run_id == run)

    def create_run(self, experiment_id, run_name):
        known = {"run_id": len(self.runs), "run_name": run_name, "experiment": experiment_id}
        info = types.SimpleNamespace(**known, status="RUNNING")
        self.runs.append(types.SimpleNamespace(info=info, data=types.SimpleNamespace(params={})))
        return self.runs[-1]

    def log_batch(self, run_id, metrics=(), params=(), tags=()):
        self.logged.extend((run_id, *metric) for metric in metrics)

    def set_terminated(self, run_id, status):
        self.runs[run_id].info.status = status


@pytest.fixture
def stub(monkeypatch):
    monkeypatch.setattr(Client, "logged", [])
    monkeypatch.setattr(Client, "runs", [])
    entities = types.SimpleNamespace(
        RunStatus=types.SimpleNamespace(FINISHED="FINISHED", to_string=str),
        LifecycleStage=types.SimpleNamespace(ACTIVE="active"),
        Metric=lambda key, value, timestamp, step: (key, value, step),
        Param=lambda key, value: (key, value),
    )
    fake = types.SimpleNamespace(MlflowClient=Client, entities=entities)
    monkeypatch.setattr(of_monai, "mlflow", fake)
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *of: name == "mlflow" or found(name, *of))
    return Client


def test_one_option_keeps_the_curves_of_a_run_in_mlflow(bundle_run, data, tmp_path, stub):
    options = {"dataset_dir": str(data), "max_epochs": EPOCHS}
    end = bundle_run("pretrain", mlflow_uri=f"sqlite:///{tmp_path}/mlflow.db", **options)
    assert end.status == 0, end.log[-3000:]
    (run,) = stub.runs
    assert run.info.run_name == str(tmp_path / "out") and run.info.status == "FINISHED"
    assert run.info.experiment == "pretrain"
    curves = {key for _, key, *_ in stub.logged}
    assert {"loss", "lr_group_0", "train_loss"} <= curves
    assert max(step for _, key, _, step in stub.logged if key == "loss") >= EPOCHS


def test_without_mlflow_the_option_is_refused(bundle_run, monkeypatch, reliability):
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *of: None if name == "mlflow" else found(name, *of))
    end = bundle_run("pretrain", mlflow_uri="sqlite:///mlflow.db")
    assert "pip install mlflow" in end.last
    reliability("Training runs", "--mlflow_uri without mlflow", end)


def test_plain_files_are_refused(bundle_run, stub, reliability):
    end = bundle_run("pretrain", mlflow_uri="file:./mlruns")
    reliability("Training runs", "--mlflow_uri file:./mlruns", end)
    assert "sqlite:///mlflow.db" in end.last and not stub.runs


@pytest.mark.slow
def test_mlflow_itself_holds_the_curves(bundle_run, data, tmp_path):
    mlflow = pytest.importorskip("mlflow", reason="mlflow is not installed")
    pytest.importorskip("sqlalchemy", reason="mlflow is not installed as a whole")
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    options = {"dataset_dir": str(data), "max_epochs": EPOCHS}
    end = bundle_run("pretrain", mlflow_uri=uri, **options)
    assert end.status == 0, end.log[-3000:]
    client = mlflow.MlflowClient(uri)
    (run,) = client.search_runs([client.get_experiment_by_name("pretrain").experiment_id])
    assert run.info.status == "FINISHED" and run.info.run_name == str(tmp_path / "out")
    losses = client.get_metric_history(run.info.run_id, "train_loss")
    assert [one.step for one in losses] == [1, 2] and all(one.value > 0 for one in losses)
