"""TokenInterpolation: zero-order hold exactly as Eq. 3 defines it, and a stable, differentiable fill."""

import numpy as np
import pytest
import scipy.linalg
import torch
import torch.nn.functional as F

from mambamim_nets.layers.interpolation import TokenInterpolation
from mambamim_nets.ops.interpolation import naive

CHANNELS = 5


def layer(transition, seed=0):
    torch.manual_seed(seed)
    made = TokenInterpolation(CHANNELS, transition)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter += 0.4 * torch.randn_like(parameter)
    return made


def system(made):
    """Return A' and Delta as float64 matrices."""
    a = made.a.detach().double().numpy()
    a = np.diag(-np.exp(a)) if made.transition == "diagonal" else a
    return a, np.diag(F.softplus(made.delta.detach().double()).numpy())


def as_matrix(values):
    return torch.diag(values) if values.ndim == 1 else values


@pytest.mark.parametrize("transition", ["diagonal", "full"])
def test_zero_order_hold_is_the_definition(transition):
    made = layer(transition)
    a, delta = system(made)
    a_bar = scipy.linalg.expm(delta @ a)
    b_bar = np.linalg.inv(delta @ a) @ (a_bar - np.eye(CHANNELS)) @ delta
    for found, expected in zip(made.discretise(), (a_bar, b_bar), strict=True):
        found = as_matrix(found.detach()).double()
        torch.testing.assert_close(found, torch.from_numpy(expected), atol=1e-6, rtol=1e-5)


def test_zero_order_hold_integrates_the_system_over_one_step():
    made = layer("full")
    a, delta = system(made)
    state, held = np.random.default_rng(0).normal(size=(2, CHANNELS))
    a_bar, b_bar = (as_matrix(m.detach()).double().numpy() for m in made.discretise())
    integrated, steps = state.copy(), 20_000
    for _ in range(steps):  # midpoint rule for h' = Delta (A' h + s) over unit time
        half = integrated + 0.5 / steps * delta @ (a @ integrated + held)
        integrated = integrated + 1 / steps * delta @ (a @ half + held)
    np.testing.assert_allclose(a_bar @ state + b_bar @ held, integrated, atol=1e-5)


def test_full_needs_no_inverse():
    made = layer("full")
    with torch.no_grad():
        made.a.zero_()  # singular: Abar = I, Bbar = Delta
    a_bar, b_bar = made.discretise()
    torch.testing.assert_close(a_bar.detach(), torch.eye(CHANNELS))
    torch.testing.assert_close(b_bar.detach(), torch.diag(F.softplus(made.delta)).detach())


def test_diagonal_equals_full_with_a_diagonal_matrix():
    diagonal, full = layer("diagonal"), layer("full")
    with torch.no_grad():
        full.a.copy_(torch.diag(-torch.exp(diagonal.a)))
        full.delta.copy_(diagonal.delta)
    visible = torch.zeros(2, 19, dtype=torch.bool)
    visible[0, [0, 3, 4, 12]] = True
    visible[1, [2, 9, 10, 18]] = True
    tokens = torch.randn(2, 4, CHANNELS)
    torch.testing.assert_close(diagonal(tokens, visible), full(tokens, visible), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("transition", ["diagonal", "full"])
def test_the_layer_fills_as_the_loop_does_with_gradients(transition):
    made = layer(transition)
    visible = torch.zeros(2, 13, dtype=torch.bool)
    visible[0, [1, 2, 11]] = True
    visible[1, [0, 6, 12]] = True
    tokens = torch.randn(2, 3, CHANNELS)
    filled = made(tokens, visible)
    expected = naive(tokens.double(), visible, *(matrix.double() for matrix in made.discretise()))
    torch.testing.assert_close(filled.double(), expected, atol=1e-5, rtol=1e-5)
    assert torch.equal(filled[visible].view_as(tokens), tokens)
    filled.square().sum().backward()
    for name, parameter in made.named_parameters():
        assert parameter.grad.isfinite().all() and parameter.grad.abs().sum() > 0, name


@pytest.mark.parametrize("transition", ["diagonal", "full"])
def test_long_gaps_stay_bounded_with_finite_gradients(transition):
    made = TokenInterpolation(CHANNELS, transition)
    visible = torch.zeros(1, 5000, dtype=torch.bool)
    visible[0, [0, 4999]] = True
    tokens = torch.randn(1, 2, CHANNELS)
    filled = made(tokens, visible)
    assert filled.abs().max() <= tokens.abs().max() * (1 + 1e-4), "an interpolation must not overshoot its ends"
    filled.square().mean().backward()
    assert all(parameter.grad.isfinite().all() for parameter in made.parameters())


def test_any_diagonal_parameter_is_stable():
    made = TokenInterpolation(3)
    with torch.no_grad():
        made.a.copy_(torch.tensor([-8.0, 0.0, 8.0]))
        made.delta.copy_(torch.tensor([-8.0, 0.0, 8.0]))
    a_bar, b_bar = made.discretise()
    assert (a_bar >= 0).all() and (a_bar < 1).all() and (b_bar > 0).all() and b_bar.isfinite().all()


def test_an_unknown_transition_is_refused():
    with pytest.raises(ValueError, match="transition 'banded' must be 'diagonal' or 'full'"):
        TokenInterpolation(3, "banded")
