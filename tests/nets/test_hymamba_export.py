"""Networks that leave Python compute what they compute in it: TorchScript by scripting and by tracing, and ONNX."""

import io

import onnx
import onnxruntime
import pytest
import torch
from small import narrow_networks
from torch.testing import assert_close

from mambamim_nets import HyMamba, HyMambaSeg

SHAPE = (1, 2, 32, 48, 32)
OTHERS = ((2, 2, 16, 32, 48), (1, 2, 48, 16, 16))


def network(kind="segmentation", **options):
    torch.manual_seed(0)
    with narrow_networks():
        segmentation = kind == "segmentation"
        made = HyMambaSeg(2, 3, size="tiny", **options) if segmentation else HyMamba(2, size="tiny", **options)
    with torch.no_grad():  # away from the start, where every step is small and the state hardly matters
        for name, parameter in made.named_parameters():
            if name.endswith("dt_proj.bias") or name.endswith("dt_proj_b.bias"):
                parameter += 3
    return made.eval()


def image(shape=SHAPE):
    return torch.randn(shape, generator=torch.Generator().manual_seed(len(shape) + sum(shape)))


def reloaded(module):
    buffer = io.BytesIO()
    torch.jit.save(module, buffer)
    buffer.seek(0)
    return torch.jit.load(buffer)


@torch.no_grad()
def assert_equal(exported, eager, *shapes):
    for shape in shapes:
        ours, theirs = exported(image(shape)), eager(image(shape))
        assert isinstance(ours, torch.Tensor) == isinstance(theirs, torch.Tensor)
        assert_close(ours, theirs, atol=1e-4, rtol=0)


@pytest.mark.parametrize("bidirectional", [True, False], ids=["both-ways", "one-way"])
@pytest.mark.parametrize("kind", ["segmentation", "encoder"])
def test_scripted_network_equals_eager_on_any_shape(kind, bidirectional):
    eager = network(kind, bidirectional=bidirectional)
    keys = list(eager.state_dict())
    scripted = reloaded(torch.jit.script(eager))
    assert list(scripted.state_dict()) == keys == list(eager.state_dict())
    assert_equal(scripted, eager, SHAPE, *OTHERS, SHAPE)  # the second run of a shape is the optimised one


def test_scripted_network_trains():
    eager, x = network(), image()
    scripted = torch.jit.script(network())
    for module in (eager, scripted):
        module(x).square().mean().backward()
    for (name, ours), (_, theirs) in zip(scripted.named_parameters(), eager.named_parameters(), strict=True):
        scale = max(1.0, float(theirs.grad.abs().max()))
        assert_close(ours.grad / scale, theirs.grad / scale, atol=1e-4, rtol=0, msg=lambda m, name=name: f"{name}: {m}")


def test_scripting_leaves_the_network_as_it_was():
    eager, x = network("encoder"), image()
    visible = torch.tensor([True, False]).repeat(6).view(1, 1, 2, 3, 2)
    with torch.no_grad():
        before = eager(x, visible)
        torch.jit.script(eager)
        assert_close(eager(x, visible), before, atol=0, rtol=0)


def test_scripted_network_refuses_what_it_cannot_do():
    scripted = torch.jit.script(network("encoder"))
    with pytest.raises(torch.jit.Error, match=r"input \[1, 2, 32, 40, 32\] must be .* multiples of 16"):
        scripted(image((1, 2, 32, 40, 32)))
    with pytest.raises(torch.jit.Error, match="visible must be None"):
        scripted(image(), torch.ones(1, 1, 2, 3, 2, dtype=torch.bool))


@pytest.mark.parametrize("scan", ["zigzag", "hilbert", "shuffle"])
def test_only_raster_is_scripted(scan):
    with pytest.raises(ValueError, match=f"scan '{scan}' cannot be scripted.*trace it"):
        torch.jit.script(network(scan=scan))


@pytest.mark.parametrize(("kind", "scan"), [("segmentation", "raster"), ("encoder", "hilbert")])
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_traced_network_equals_eager(kind, scan):
    eager = network(kind, scan=scan)
    traced = reloaded(torch.jit.trace(eager, image(), check_trace=False))
    assert_equal(traced, eager, SHAPE)


@pytest.mark.slow
def test_onnx_equals_eager_with_few_nodes(tmp_path):
    """The encoder; tests/bundles exports a segmentation network."""
    eager, path = network("encoder"), tmp_path / "network.onnx"
    torch.onnx.export(eager, (image(),), f=path, verbose=False)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    maps = [torch.from_numpy(m) for m in session.run(None, {session.get_inputs()[0].name: image().numpy()})]
    assert_equal(lambda _: maps, eager, SHAPE)
    assert len(onnx.load(path).graph.node) < 500  # token by token there would be over 1000
