"""The Mamba recurrence: compiled CPU path and public function against the loop that states it."""

import importlib
import multiprocessing
import sys

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.testing import assert_close

from mambamim_nets.ops import selective_scan
from mambamim_nets.ops.recurrence import naive, native, on_cpu, parallel
from mambamim_nets.ops.recurrence.native import CHUNK, LANES

LENGTHS = [1, 7, CHUNK - 1, CHUNK, CHUNK + 1, 63, 64, 65, 129]
NAMES = ("u", "delta", "A", "B", "C", "D", "z", "delta_bias")


def draw(
    batch: int = 2,
    channels: int = 6,
    length: int = 9,
    states: int = 3,
    groups: int | None = None,
    dtype: torch.dtype = torch.float64,
) -> dict[str, Tensor]:
    """Draw every argument of selective_scan; groups=None gives B and C without a group axis."""
    generator = torch.Generator().manual_seed(length)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    matrix = (batch, states, length) if groups is None else (batch, groups, states, length)
    inputs = {
        "u": normal(batch, channels, length),
        "delta": normal(batch, channels, length),
        "A": -torch.exp(0.5 * normal(channels, states)),
        "B": normal(*matrix),
        "C": normal(*matrix),
        "D": normal(channels),
        "z": normal(batch, channels, length),
        "delta_bias": normal(channels),
    }
    return {name: tensor.requires_grad_() for name, tensor in inputs.items()}


def reference(inputs: dict[str, Tensor], delta_softplus: bool = True) -> tuple[Tensor, Tensor]:
    """Evaluate the equations of the module docstring around the naive loop, in the dtype of the inputs."""
    u, delta, A, B, C = (inputs[name] for name in NAMES[:5])
    B, C = (matrix[:, None] if matrix.ndim == 3 else matrix for matrix in (B, C))
    if "delta_bias" in inputs:
        delta = delta + inputs["delta_bias"][:, None]
    if delta_softplus:
        delta = F.softplus(delta)
    y, last_state = naive(u.mT, delta.mT, A, B.mT, C.mT)
    out = y.mT
    if "D" in inputs:
        out = out + inputs["D"][:, None] * u
    if "z" in inputs:
        out = out * F.silu(inputs["z"])
    return out, last_state


def gradients(out: Tensor, last_state: Tensor, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    weights = [torch.randn(tensor.shape, generator=generator, dtype=torch.float64) for tensor in (out, last_state)]
    loss = (out * weights[0]).sum() + (last_state * weights[1]).sum()
    grads = torch.autograd.grad(loss, list(inputs.values()), allow_unused=True, materialize_grads=True)
    return dict(zip(inputs, grads, strict=True))


def assert_same(inputs: dict[str, Tensor], delta_softplus: bool = True, tolerance: float = 1e-10) -> None:
    out, last_state = selective_scan(**inputs, delta_softplus=delta_softplus, return_last_state=True)
    expected, expected_state = reference(inputs, delta_softplus)
    assert_close(out, expected, rtol=tolerance, atol=tolerance)
    assert_close(last_state, expected_state, rtol=tolerance, atol=tolerance)
    ours, theirs = gradients(out, last_state, inputs), gradients(expected, expected_state, inputs)
    for name in inputs:
        scale = max(1.0, float(theirs[name].abs().max()))
        error = float((ours[name] - theirs[name]).abs().max()) / scale
        assert error <= tolerance, f"gradient of {name}: relative error {error}"


def test_naive_on_two_steps_by_hand() -> None:
    u = torch.tensor([[[1.0], [2.0]]])
    delta = torch.tensor([[[0.5], [0.25]]])
    A, B, C = torch.tensor([[-1.0]]), torch.tensor([[[[3.0], [1.0]]]]), torch.tensor([[[[2.0], [4.0]]]])
    y, h = naive(u, delta, A, B, C)
    first = 0.5 * 3.0 * 1.0
    second = torch.exp(torch.tensor(-0.25)) * first + 0.25 * 1.0 * 2.0
    assert_close(y.flatten(), torch.stack([torch.tensor(2 * first), 4 * second]))
    assert_close(h.flatten(), second.reshape(1))


@pytest.mark.parametrize("length", [1, 2, 5, 8, 33])
@pytest.mark.parametrize("groups", [1, 3])
def test_parallel_scan_equals_the_loop_with_all_gradients(length: int, groups: int) -> None:
    generator = torch.Generator().manual_seed(length)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    inputs = [normal(2, length, 6), normal(2, length, 6).exp(), -normal(6, 4).exp()]
    inputs = [tensor.requires_grad_() for tensor in (*inputs, *(normal(2, groups, length, 4) for _ in range(2)))]
    results = []
    for scan in (parallel, naive):
        y, state = scan(*inputs)
        loss = (y * torch.linspace(-1, 1, y.numel()).view_as(y)).sum() + state.square().sum()
        results.append((y, state, *torch.autograd.grad(loss, inputs, allow_unused=True, materialize_grads=True)))
    for ours, theirs in zip(*results, strict=True):
        assert_close(ours, theirs, atol=1e-10, rtol=1e-10)


def test_parallel_scan_survives_strong_decay() -> None:
    u, delta = torch.ones(1, 600, 2), torch.full((1, 600, 2), 50.0)
    A, matrix = torch.tensor([[-16.0, -1e-4]]).expand(2, 2), torch.ones(1, 1, 600, 2)
    for ours, theirs in zip(parallel(u, delta, A, matrix, matrix), naive(u, delta, A, matrix, matrix), strict=True):
        assert_close(ours, theirs, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("length", LENGTHS)
def test_float64_equals_the_loop_with_all_gradients(length: int) -> None:
    assert_same(draw(length=length))


@pytest.mark.parametrize("length", LENGTHS)
def test_float32_equals_the_loop_with_all_gradients(length: int) -> None:
    assert_same(draw(length=length, channels=40, states=16, dtype=torch.float32), tolerance=1e-5)


@pytest.mark.parametrize("channels", [1, LANES - 1, LANES, LANES + 1, 3 * LANES + 6])
def test_any_number_of_channels(channels: int) -> None:
    assert_same(draw(channels=channels, length=37))
    assert_same(draw(channels=channels, length=37, dtype=torch.float32), tolerance=1e-5)


@pytest.mark.parametrize("groups", [1, 2, 3, 6])
def test_groups(groups: int) -> None:
    assert_same(draw(groups=groups, length=40))


def test_groups_wider_than_a_block_of_lanes() -> None:
    assert_same(draw(groups=2, channels=2 * LANES + 10, length=40))


def test_one_state() -> None:
    assert_same(draw(states=1, length=40))


@pytest.mark.parametrize("delta_softplus", [False, True], ids=["no-softplus", "softplus"])
@pytest.mark.parametrize(
    "absent",
    [(), ("D",), ("z",), ("delta_bias",), ("D", "z"), ("D", "z", "delta_bias")],
    ids=lambda names: "without-" + "-".join(names or ["none"]),
)
def test_optional_arguments(absent: tuple[str, ...], delta_softplus: bool) -> None:
    inputs = {name: tensor for name, tensor in draw(length=20).items() if name not in absent}
    if not delta_softplus:
        inputs["delta"] = (0.1 * inputs["delta"]).detach().requires_grad_()
    assert_same(inputs, delta_softplus)


def test_last_state_only_when_asked_and_alone_carries_gradient() -> None:
    inputs = draw(length=70)
    assert isinstance(selective_scan(**inputs), Tensor)
    last_state = selective_scan(**inputs, return_last_state=True)[1]
    expected = reference(inputs, delta_softplus=False)[1]
    names = ["u", "delta", "A", "B", "delta_bias"]
    wanted = [inputs[name] for name in names]
    for one, other in zip(
        torch.autograd.grad(last_state.square().sum(), wanted),
        torch.autograd.grad(expected.square().sum(), wanted),
        strict=True,
    ):
        assert_close(one, other, rtol=1e-9, atol=1e-9)


def test_gradcheck() -> None:
    inputs = draw(channels=2, length=CHUNK + 2, states=2, batch=1)

    def scan(*args: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        return selective_scan(*args, delta_softplus=True, return_last_state=True)

    assert torch.autograd.gradcheck(scan, tuple(inputs.values()), fast_mode=True)


def test_only_some_inputs_need_a_gradient() -> None:
    inputs = draw(length=40)
    for name in NAMES:
        alone = {key: tensor.detach().requires_grad_(key == name) for key, tensor in inputs.items()}
        (ours,) = torch.autograd.grad(selective_scan(**alone, delta_softplus=True).sum(), alone[name])
        (theirs,) = torch.autograd.grad(reference(alone)[0].sum(), alone[name])
        assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


def test_without_gradient_the_values_are_the_same() -> None:
    inputs = draw(length=40, dtype=torch.float32)
    with torch.no_grad():
        out = selective_scan(**inputs)
    assert not out.requires_grad
    assert torch.equal(out, selective_scan(**inputs))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_low_precision_is_computed_in_float32(dtype: torch.dtype) -> None:
    inputs = {name: tensor.detach() for name, tensor in draw(length=40, dtype=torch.float32).items()}
    for name in ("u", "delta", "B", "C", "z"):
        inputs[name] = inputs[name].to(dtype)
    out, last_state = selective_scan(**inputs, delta_softplus=True, return_last_state=True)
    assert out.dtype == dtype and last_state.dtype == torch.float32
    expected, state = reference({name: tensor.float() for name, tensor in inputs.items()})
    assert_close(last_state, state, rtol=1e-5, atol=1e-5)
    assert_close(out.float(), expected, rtol=1e-2, atol=1e-2)


def test_autocast_changes_nothing() -> None:
    inputs = draw(length=40, dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        out = selective_scan(**inputs, delta_softplus=True)
    assert torch.equal(out, selective_scan(**inputs, delta_softplus=True))


def test_non_contiguous_inputs() -> None:
    inputs = draw(batch=3, length=40)
    for name in ("u", "delta", "z"):
        inputs[name] = inputs[name].detach().transpose(0, 1).contiguous().transpose(0, 1).requires_grad_()
    for name in ("B", "C", "A"):
        inputs[name] = inputs[name].detach().mT.contiguous().mT.requires_grad_()
    inputs["u"] = inputs["u"].detach()[:1].expand(3, -1, -1).requires_grad_()
    assert not inputs["u"].is_contiguous() and not inputs["B"].is_contiguous()
    assert_same(inputs)


@pytest.fixture
def eager_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Use threads for any amount of work."""
    monkeypatch.setattr(native, "SERIAL_WORK", 0)


@pytest.mark.usefixtures("eager_threads")
def test_every_thread_count_gives_the_same_numbers() -> None:
    inputs = draw(batch=3, channels=70, length=100, states=8, groups=2, dtype=torch.float32)
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 3, 5, 16):
            torch.set_num_threads(threads)
            out, last_state = selective_scan(**inputs, delta_softplus=True, return_last_state=True)
            results.append([out, last_state, *gradients(out, last_state, inputs).values()])
    finally:
        torch.set_num_threads(before)
    for result in results[1:]:
        for one, other in zip(result, results[0], strict=True):
            one, other = one.detach(), other.detach()
            assert float((one - other).abs().max()) <= 1e-6 * max(1.0, float(other.abs().max()))


@pytest.mark.parametrize("value", [-1e4, -200.0, -88.0, 0.0, 20.0], ids=str)
def test_extreme_exponents_in_float32(value: float) -> None:
    u, delta, B = torch.ones(1, 5, 1), torch.ones(1, 5, 1), torch.ones(1, 1, 5, 2)
    A = torch.full((1, 2), value)
    out = selective_scan(u.mT, delta.mT, A, B.mT, B.mT)
    assert_close(out.mT, naive(u, delta, A, B, B)[0], rtol=1e-5, atol=1e-30)


@pytest.mark.parametrize("name", ["u", "delta", "A", "B", "C"])
def test_nan_is_not_hidden(name: str) -> None:
    inputs = {key: tensor.detach() for key, tensor in draw(length=5, dtype=torch.float32).items()}
    inputs[name] = torch.full_like(inputs[name], torch.nan)
    assert selective_scan(**inputs)[..., 1:].isnan().all()


def test_autograd_does_not_keep_every_state() -> None:
    batch, channels, length, states = 1, 64, 512, 64
    inputs = draw(batch, channels, length, states, dtype=torch.float32)
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        selective_scan(**inputs, delta_softplus=True)
    assert sum(kept.values()) < 0.25 * batch * channels * length * states * 4


def _scan_in_child(inputs: dict[str, Tensor], queue: "multiprocessing.Queue[float]") -> None:
    queue.put(float(selective_scan(**inputs, delta_softplus=True).sum()))


@pytest.mark.usefixtures("eager_threads")
@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="this system cannot fork")
def test_forked_child_after_use_in_the_parent() -> None:
    """The threads of the parent's pool do not exist in the child; waiting for them would hang."""
    # So small that torch's own thread pool, which does not survive a fork, stays out; enough states for two of ours.
    inputs = {name: tensor.detach() for name, tensor in draw(1, 64, 128, 17, dtype=torch.float32).items()}
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        expected = float(selective_scan(**inputs, delta_softplus=True).sum())
        context = multiprocessing.get_context("fork")
        queue = context.Queue()
        child = context.Process(target=_scan_in_child, args=(inputs, queue))
        child.start()
        try:
            assert queue.get(timeout=60) == expected
        finally:
            child.join(10)
            child.kill()
    finally:
        torch.set_num_threads(before)


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_tracing_equals_eager() -> None:
    inputs = tuple(tensor.detach() for tensor in draw(length=5, dtype=torch.float32).values())
    traced = torch.jit.trace(lambda *args: selective_scan(*args), inputs)
    changed = tuple(1.1 * tensor for tensor in inputs)
    assert_close(traced(*changed), selective_scan(*changed), rtol=1e-5, atol=1e-5)


def test_torch_compile_keeps_the_kernel_and_its_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    """The graph breaks around the compiled loops; `parallel` is for what leaves Python."""
    calls = []

    def counted(*args: Tensor) -> tuple[Tensor, Tensor]:
        calls.append(len(args))
        return on_cpu(*args)

    monkeypatch.setattr(sys.modules[selective_scan.__module__], "on_cpu", counted)
    inputs = draw(length=5, dtype=torch.float32)
    results = []
    for scan in (torch.compile(lambda **args: selective_scan(**args), backend="aot_eager"), selective_scan):
        out, last_state = scan(**inputs, delta_softplus=True, return_last_state=True)
        results.append((out, last_state, *gradients(out, last_state, inputs).values()))
    assert calls == [9, 9]
    for one, other in zip(*results, strict=True):
        assert_close(one, other, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_what_mamba_ssm_is_given(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its contract: sequences of one dtype; A, D and delta_bias float32."""
    module = importlib.import_module("mambamim_nets.ops.recurrence.external")
    inputs = {name: tensor.detach() for name, tensor in draw(dtype=torch.float32).items()}
    inputs["u"] = inputs["u"].to(dtype)

    def selective_scan_fn(u, delta, A, B, C, D, z, delta_bias, delta_softplus, return_last_state):  # type: ignore
        assert {tensor.dtype for tensor in (u, delta, B, C, z)} == {dtype}
        assert {tensor.dtype for tensor in (A, D, delta_bias)} == {torch.float32}
        return selective_scan(u, delta, A, B, C, D, z, delta_bias, delta_softplus, return_last_state)

    monkeypatch.setattr(module, "mamba_ssm_scan", lambda: selective_scan_fn)
    out = module.on_mamba_ssm(*inputs.values(), True, False)
    assert_close(out, selective_scan(**inputs, delta_softplus=True), rtol=3e-2, atol=3e-2)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_equals_cpu_with_all_gradients() -> None:
    inputs = draw(length=65, channels=8, states=16, dtype=torch.float32)
    on_device = {name: tensor.detach().cuda().requires_grad_() for name, tensor in inputs.items()}
    ours, theirs = selective_scan(**on_device, delta_softplus=True), selective_scan(**inputs, delta_softplus=True)
    assert_close(ours.cpu(), theirs, rtol=1e-4, atol=1e-4)
    ours.square().sum().backward()
    theirs.square().sum().backward()
    for name in NAMES:
        mine, other = on_device[name].grad, inputs[name].grad
        assert mine is not None and other is not None
        scale = max(1.0, float(other.abs().max()))
        assert_close(mine.cpu() / scale, other / scale, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"u": torch.zeros(2, 6)}, r"u \(2, 6\).*\(B, D, L\)"),
        ({"u": torch.zeros(2, 6, 0)}, r"non-empty"),
        ({"delta": torch.zeros(2, 6, 8)}, r"delta \(2, 6, 8\) must be \(2, 6, 9\)"),
        ({"A": torch.zeros(5, 3)}, r"A \(5, 3\).*D = 6"),
        ({"A": torch.zeros(6, 3, dtype=torch.complex64)}, r"A is torch.complex64.*real"),
        ({"B": torch.zeros(6, 3)}, r"B \(6, 3\).*\(B, G, N, L\)"),
        ({"B": torch.zeros(2, 4, 3, 9), "C": torch.zeros(2, 4, 3, 9)}, r"G = 4.*divide D = 6"),
        ({"C": torch.zeros(2, 2, 3, 9)}, r"C \(2, 2, 3, 9\) must be \(2, 3, 9\)"),
        ({"D": torch.zeros(5)}, r"D \(5,\) must be \(6,\)"),
        ({"z": torch.zeros(2, 9, 6)}, r"z \(2, 9, 6\)"),
        ({"delta_bias": torch.zeros(6, 1)}, r"delta_bias \(6, 1\)"),
        ({"u": torch.zeros(2, 6, 9, dtype=torch.int64)}, r"u is torch.int64"),
        ({"A": torch.zeros(6, 3, device="meta")}, r"A is on meta.*u on cpu"),
    ],
    ids=["u", "empty", "delta", "A", "complex", "B", "groups", "C", "D", "z", "delta_bias", "u-dtype", "device"],
)
def test_errors_name_the_rule(change: dict[str, Tensor], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        selective_scan(**{**draw(dtype=torch.float32), **change})
