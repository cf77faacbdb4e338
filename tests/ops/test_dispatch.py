"""Which implementation may run where."""

import importlib.util
import shutil

import pytest
import torch

from mambamim_nets.ops import dispatch


@pytest.fixture(autouse=True)
def fresh():
    caches = (dispatch.importable, dispatch.triton_works)
    for function in caches:
        function.cache_clear()
    yield
    for function in caches:
        function.cache_clear()


@pytest.mark.parametrize("installed", [True, False])
@pytest.mark.parametrize("compiler", ["gcc", None])
def test_triton_needs_itself_and_a_compiler(monkeypatch, installed, compiler):
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object() if installed else None)
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}" if name == compiler else None)
    assert dispatch.triton_works() is (installed and compiler is not None)


def test_recording_is_true_under_tracing_and_export_only():
    seen = []

    class Network(torch.nn.Module):
        def forward(self, x):
            seen.append(dispatch.recording())
            return x + 1

    network, x = Network(), torch.zeros(1)
    network(x)
    torch.jit.trace(network, x, check_trace=False)
    torch.export.export(network, (x,), strict=False)
    assert seen[0] is False and all(seen[1:]) and len(seen) >= 3
