"""State-space token interpolation: the closed form and the doubling scan against the loop that states Eq. 6-8."""

import pytest
import torch
from torch.testing import assert_close

from mambamim_nets.ops import toki
from mambamim_nets.ops.interpolation import naive


def rows(*patterns: str) -> torch.Tensor:
    """Read masks drawn as text, x = visible and . = hidden."""
    return torch.tensor([[mark == "x" for mark in pattern] for pattern in patterns])


MASKS = {
    "unequal-gaps": rows("x..x.....x", "x.x......x", "xx.......x"),
    "leading-run": rows("...x.x..x", "xx......x"),
    "trailing-run": rows("x..xx....", ".x.x....x"),
    "both-runs": rows(".....x...x...", "xx..........."),
    "one-visible": rows("....x..", "x......", "......x"),
    "all-visible": rows("xxxxx", "xxxxx"),
    "one-token": rows("x"),
    "gap-60": rows("x" + "." * 60 + "x", "." * 60 + "xx"),
}


def draw(visible: torch.Tensor, full: bool, channels: int = 5, seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    kept = int(visible[0].sum())
    y = torch.randn(len(visible), kept, channels, generator=generator, dtype=torch.float64)
    a = torch.rand(channels, generator=generator, dtype=torch.float64)
    b = torch.rand(channels, generator=generator, dtype=torch.float64)
    if full:
        mix = torch.randn(2, channels, channels, generator=generator, dtype=torch.float64)
        a, b = torch.diag(0.8 * a) + 0.05 * mix[0], torch.diag(b) + 0.3 * mix[1]
    return [tensor.requires_grad_() for tensor in (y, a, b)]


@pytest.mark.parametrize("full", [False, True], ids=["diagonal", "full"])
@pytest.mark.parametrize("visible", MASKS.values(), ids=MASKS.keys())
def test_equals_naive_with_all_gradients(visible: torch.Tensor, full: bool) -> None:
    y, a, b = draw(visible, full)
    out, expected = toki(y, visible, a, b), naive(y, visible, a, b)
    assert out.shape == (*visible.shape, y.shape[2])
    assert_close(out, expected, rtol=1e-10, atol=1e-10)
    weight = torch.randn(out.shape, generator=torch.Generator().manual_seed(1), dtype=out.dtype)
    ours = torch.autograd.grad(out, (y, a, b), weight, allow_unused=True, materialize_grads=True)
    theirs = torch.autograd.grad(expected, (y, a, b), weight, allow_unused=True, materialize_grads=True)
    for one, other in zip(ours, theirs, strict=True):
        assert_close(one, other, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("full", [False, True], ids=["diagonal", "full"])
def test_gradcheck(full: bool) -> None:
    visible = rows(".x...xx..", "x....x..x")
    y, a, b = draw(visible, full, channels=2)
    assert torch.autograd.gradcheck(lambda *inputs: toki(inputs[0], visible, *inputs[1:]), (y, a, b))


@pytest.mark.parametrize("full", [False, True], ids=["diagonal", "full"])
@pytest.mark.parametrize("value", [0.0, 1.0, -0.5])
def test_value_and_gradient_at_special_state_matrices(value: float, full: bool) -> None:
    visible = MASKS["both-runs"]
    y, a, b = draw(visible, full)
    a = torch.full((5,), value, dtype=torch.float64)
    a = (torch.diag(a) if full else a).requires_grad_()
    out, expected = toki(y, visible, a, b), naive(y, visible, a, b)
    assert_close(out, expected, rtol=1e-10, atol=1e-10)
    for one, other in zip(
        torch.autograd.grad(out.square().sum(), (y, a, b)),
        torch.autograd.grad(expected.square().sum(), (y, a, b)),
        strict=True,
    ):
        assert_close(one, other, rtol=1e-9, atol=1e-9)


def test_without_memory_it_is_linear_interpolation() -> None:
    """Abar = 0, Bbar = 1: also shows that the last hidden token does not reach y_{i+1}."""
    y = torch.tensor([[[0.0], [8.0]]])
    out = toki(y, rows("x..x"), torch.zeros(1), torch.ones(1))
    assert_close(out.flatten(), torch.tensor([0.0, 2.0, 4.0, 8.0]))


def test_weights_fall_with_the_age_of_the_input() -> None:
    """z_j weights s_n by Abar^(j-n): the newest input has weight one, whatever the length of the gap."""
    y = torch.tensor([[[1.0], [1.0]]])
    out = toki(y, rows("x...x"), torch.full((1,), 0.5), torch.ones(1))
    assert_close(out.flatten(), torch.tensor([1.0, 1.5, 1.75, 1.875, 1.0]))
    steep = toki(torch.tensor([[[0.0], [5.0]]]), rows("x...x"), torch.full((1,), 0.5), torch.ones(1))
    assert_close(steep.flatten(), torch.tensor([0.0, 1.0, 2.5, 4.25, 5.0]))


def test_hidden_first_and_last_positions_are_filled() -> None:
    y = torch.tensor([[[2.0]]])
    out = toki(y, rows("..x.."), torch.full((1,), 0.5), torch.full((1,), 0.5))
    assert_close(out.flatten(), torch.tensor([1.5, 1.75, 2.0, 1.5, 1.75]))


def test_layout_is_tokens_by_channels() -> None:
    """Each channel of a diagonal fill depends on that channel alone, and each position on its own gap alone."""
    visible = MASKS["both-runs"]
    y, a, b = (tensor.detach() for tensor in draw(visible, full=False))
    out = toki(y, visible, a, b)
    for channel in range(5):
        one = slice(channel, channel + 1)
        assert_close(toki(y[..., one], visible, a[one], b[one]), out[..., one])
    changed = y.clone()
    changed[0, 1, 3] += 1.0
    moved = (toki(changed, visible, a, b) != out).nonzero()
    assert set(moved[:, 0].tolist()) == {0} and set(moved[:, 2].tolist()) == {3}
    assert moved[:, 1].tolist() == list(range(6, 13))


@pytest.mark.parametrize("full", [False, True], ids=["diagonal", "full"])
def test_visible_tokens_are_bit_equal(full: bool) -> None:
    visible = MASKS["unequal-gaps"]
    y, a, b = (tensor.detach().float() for tensor in draw(visible, full))
    assert torch.equal(toki(y, visible, a, b)[visible], y.flatten(0, 1))


@pytest.mark.parametrize("full", [False, True], ids=["diagonal", "full"])
@pytest.mark.parametrize("autocast", [False, True], ids=["plain", "autocast"])
def test_bfloat16_is_computed_in_float32(full: bool, autocast: bool) -> None:
    visible = MASKS["gap-60"]
    y, a, b = (tensor.detach().float() for tensor in draw(visible, full))
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        out = toki(y.bfloat16(), visible, a, b)
    assert out.dtype == torch.bfloat16
    assert torch.equal(out, toki(y.bfloat16().float(), visible, a, b).bfloat16())


def test_float32_is_accurate_on_long_gaps() -> None:
    visible = MASKS["gap-60"]
    y, a, b = (tensor.detach() for tensor in draw(visible, full=False))
    a = 1 - 0.01 * a
    out = toki(y.float(), visible, a.float(), b.float())
    assert_close(out.double(), naive(y, visible, a.float().double(), b), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"y": torch.zeros(2, 3)}, r"y \(2, 3\).*\(B, K, C\)"),
        ({"y": torch.zeros(2, 0, 4)}, r"K >= 1"),
        ({"y": torch.zeros(2, 2, 4, dtype=torch.int64)}, r"int64.*floating"),
        ({"visible": rows("x.x", "xx.").long()}, r"visible.*int64.*bool"),
        ({"visible": rows("x.x")}, r"visible \(1, 3\).*B = 2"),
        ({"visible": rows("x.x", "xxx")}, r"\[2, 3\].*exactly K = 2"),
        ({"a_bar": torch.zeros(3)}, r"a_bar \(3,\).*\(4,\) or \(4, 4\)"),
        ({"b_bar": torch.zeros(4, 1)}, r"b_bar \(4, 1\)"),
        ({"b_bar": torch.zeros(4, 4)}, r"both be diagonal or both be full"),
    ],
    ids=["y-ndim", "no-visible", "y-dtype", "mask-dtype", "mask-batch", "count", "a-shape", "b-shape", "mixed"],
)
def test_errors_name_the_rule(change: dict[str, torch.Tensor], message: str) -> None:
    inputs = {
        "y": torch.zeros(2, 2, 4),
        "visible": rows("x.x", "xx."),
        "a_bar": torch.zeros(4),
        "b_bar": torch.zeros(4),
    }
    with pytest.raises(ValueError, match=message):
        toki(**{**inputs, **change})
