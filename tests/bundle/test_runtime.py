"""Activation checkpointing changes memory only; freed memory is kept."""

import copy
import subprocess
import sys

import processes
import pytest
import torch
from helpers import environment
from torch.testing import assert_close

from mambamim_nets import MAE, HyMamba, HyMambaSeg, MambaMIM, MambaUNETR, MMUNet, VisionMamba
from mambamim_nets.bundle.runtime import checkpoint_activations, peak_memory
from mambamim_nets.masking import random_visible

VISIBLE = random_visible(1, (2, 2, 2), 0.5, torch.Generator().manual_seed(0))
CASES = {
    "pre-training": (lambda: MambaMIM(HyMamba(size="tiny")), lambda network, x: network(x, VISIBLE).loss),
    "masked autoencoder": (
        lambda: MAE(VisionMamba(size="tiny"), decoder_width=64, decoder_depth=2),
        lambda network, x: network(x, VISIBLE).loss,
    ),
    "segmentation": (lambda: HyMambaSeg(1, 3, size="tiny"), lambda network, x: network(x).square().mean()),
    "vanilla mamba": (lambda: MambaUNETR(1, 3, size="tiny"), lambda network, x: network(x).square().mean()),
    "mm-unet": (
        lambda: MMUNet(1, 3, size="tiny", resolutions=4, deep_supervision=False),
        lambda network, x: network(x).square().mean(),
    ),
}


def gradients(network, loss, x):
    """Return the gradient of every parameter, and the bytes that autograd kept after the forward pass."""
    kept = 0

    def count(tensor):
        nonlocal kept
        kept += tensor.numel() * tensor.element_size()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        value = loss(network, x)
    value.backward()
    return [parameter.grad for parameter in network.parameters()], kept


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_gradients_and_keys_stay_and_memory_falls(case):
    torch.manual_seed(0)
    build, loss = CASES[case]
    x, plain = torch.rand(1, 1, 32, 32, 32), build()
    wrapped = checkpoint_activations(copy.deepcopy(plain), enabled="true")
    assert list(wrapped.state_dict()) == list(plain.state_dict())
    wrapped.load_state_dict(plain.state_dict())
    expected, much = gradients(plain, loss, x)
    found, little = gradients(wrapped, loss, x)
    for ours, theirs in zip(found, expected, strict=True):
        assert (ours is None) == (theirs is None)
        if ours is not None:
            assert_close(ours, theirs)
    assert little < 0.6 * much


def test_switched_off_it_leaves_the_network_alone():
    network = HyMamba(size="tiny")
    before = [type(module) for module in network.modules()]
    assert [type(module) for module in checkpoint_activations(network, False).modules()] == before


PROGRAM = """
import resource, sys, torch
from mambamim_nets.bundle.runtime import reuse_memory
if sys.argv[1] == "reuse":
    reuse_memory()
def faults(rounds):
    for _ in range(rounds):
        torch.ones(32, 1024, 1024)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
first = faults(2)
print(faults(10) - first)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the GNU C library is on Linux")
def test_freed_memory_is_used_again(tmp_path):
    (tmp_path / "program.py").write_text(PROGRAM)
    found = {}
    for mode in ("reuse", "default"):
        (done,) = processes.run([tmp_path / "program.py", mode], cwd=tmp_path, variables=[environment()])
        assert done.returncode == 0, done.stderr
        found[mode] = int(done.stdout)
    # A small allocation behind a freed tensor makes the library ask for the next one anew, but not each time.
    assert found["reuse"] < found["default"] / 3


@pytest.mark.slow
def test_the_peak_is_that_of_the_process_and_not_of_the_one_that_started_it():
    program = "from mambamim_nets.bundle.runtime import peak_memory; print(peak_memory())"
    held = torch.ones(2**28)  # 1 GiB here
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert 50 * 2**20 < int(run.stdout) < peak_memory() and peak_memory() > 4 * held.numel()


HELD = """
import atexit, gc, weakref
import torch.distributed as dist
from mambamim_nets.bundle.runtime import init_distributed
gc.disable()
atexit.register(lambda: print("the group is gone:", group() is None))
init_distributed()
group = weakref.ref(dist.group.WORLD)
circle = [dist.group.WORLD]
circle.append(circle)
dist.destroy_process_group()
del circle
print("it is held:", group() is not None)
"""


@pytest.mark.slow
def test_a_process_group_that_is_held_in_a_circle_is_gone_before_python_is(tmp_path):
    """Else threads of gloo abort the process now and then, after all its work."""
    launched = {"LOCAL_RANK": "0", "RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    command, variables = [sys.executable, "-c", HELD], environment(CUDA_VISIBLE_DEVICES="", **launched)
    run = subprocess.run(command, cwd=tmp_path, env=variables, capture_output=True, text=True, timeout=120)
    assert run.stdout.splitlines() == ["it is held: True", "the group is gone: True"], run.stderr[-2000:]
