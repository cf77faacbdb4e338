"""The Mamba mixer against an independent step-by-step Mamba, and its names, initialisation and directions."""

import pytest
import torch
import torch.nn.functional as F

from mambamim_nets.layers.mamba import MambaLayer, MambaMixer, TokenNorm

D_MODEL, D_STATE, D_CONV, EXPAND = 24, 5, 4, 2
D_INNER, DT_RANK = EXPAND * D_MODEL, 2


def mixer(bidirectional=False, seed=0, dtype=torch.float32):
    torch.manual_seed(seed)
    made = MambaMixer(D_MODEL, D_STATE, D_CONV, EXPAND, bidirectional)
    with torch.no_grad():  # away from the symmetric start, so that a swapped index would show
        for name, parameter in made.named_parameters():
            if "A" in name or name.startswith("D"):
                parameter += 0.3 * torch.randn_like(parameter)
    return made.to(dtype)


FORWARD = {
    "A_log": (D_INNER, D_STATE),
    "D": (D_INNER,),
    "in_proj.weight": (2 * D_INNER, D_MODEL),
    "conv1d.weight": (D_INNER, 1, D_CONV),
    "conv1d.bias": (D_INNER,),
    "x_proj.weight": (DT_RANK + 2 * D_STATE, D_INNER),
    "dt_proj.weight": (D_INNER, DT_RANK),
    "dt_proj.bias": (D_INNER,),
    "out_proj.weight": (D_MODEL, D_INNER),
}
BACKWARD = {
    "A_b_log": (D_INNER, D_STATE),
    "D_b": (D_INNER,),
    "conv1d_b.weight": (D_INNER, 1, D_CONV),
    "conv1d_b.bias": (D_INNER,),
    "x_proj_b.weight": (DT_RANK + 2 * D_STATE, D_INNER),
    "dt_proj_b.weight": (D_INNER, DT_RANK),
    "dt_proj_b.bias": (D_INNER,),
}


@pytest.mark.parametrize(("bidirectional", "expected"), [(False, FORWARD), (True, FORWARD | BACKWARD)])
def test_parameters_are_named_and_shaped_as_in_mamba_ssm_and_vim(bidirectional, expected):
    assert {name: tuple(value.shape) for name, value in mixer(bidirectional).state_dict().items()} == expected


def test_initialisation_is_mamba_ssms():
    torch.manual_seed(0)
    made = MambaMixer(96, d_state=16)
    for suffix in ("", "_b"):
        expected = torch.arange(1, 17).float().log().expand(192, 16)
        torch.testing.assert_close(getattr(made, f"A{suffix}_log").detach(), expected)
        assert torch.equal(getattr(made, f"D{suffix}").detach(), torch.ones(192))
        projection = getattr(made, f"dt_proj{suffix}")
        step = F.softplus(projection.bias.detach())
        assert step.min() >= 1e-3 * (1 - 1e-4) and step.max() <= 0.1 * (1 + 1e-4)
        # log-uniform: the median is the geometric mean of the bounds
        assert step.log().median().exp().item() == pytest.approx(1e-2, rel=0.5)
        assert projection.weight.abs().max() <= made.dt_rank**-0.5
    assert made.dt_rank == 6 and MambaMixer(97).dt_rank == 7


def reference(network, tokens, suffix="", project=True):
    """Mamba as in its paper (Gu and Dao 2023, Algorithm 2), token by token and channel by channel in plain PyTorch."""
    state = dict(network.state_dict())
    a = -torch.exp(state[f"A{suffix}_log"])
    rank = state[f"dt_proj{suffix}.weight"].shape[1]
    outputs = []
    for sequence in tokens:
        x, z = (sequence @ state["in_proj.weight"].T).chunk(2, dim=-1)
        h = torch.zeros_like(a)
        past = torch.zeros(D_CONV, x.shape[-1], dtype=x.dtype)
        steps = []
        for t in range(sequence.shape[0]):
            past = torch.cat([past[1:], x[t : t + 1]])
            convolved = (past * state[f"conv1d{suffix}.weight"][:, 0].T).sum(0) + state[f"conv1d{suffix}.bias"]
            u = convolved * torch.sigmoid(convolved)
            dt, b, c = torch.split(state[f"x_proj{suffix}.weight"] @ u, [rank, a.shape[1], a.shape[1]])
            delta = F.softplus(state[f"dt_proj{suffix}.weight"] @ dt + state[f"dt_proj{suffix}.bias"])
            h = torch.exp(delta[:, None] * a) * h + delta[:, None] * b[None] * u[:, None]
            y = h @ c + state[f"D{suffix}"] * u
            steps.append(y * z[t] * torch.sigmoid(z[t]))
        y = torch.stack(steps)
        outputs.append(y @ state["out_proj.weight"].T if project else y)
    return torch.stack(outputs)


@pytest.mark.parametrize("length", [1, 3, 17])
@pytest.mark.parametrize("bidirectional", [False, True])
def test_the_mixer_equals_a_step_by_step_mamba(length, bidirectional):
    made = mixer(bidirectional)
    tokens = torch.randn(2, length, D_MODEL)
    double = mixer(bidirectional).double()
    expected = reference(double, tokens.double())
    if bidirectional:
        expected = expected + reference(double, tokens.double().flip(1), "_b").flip(1)
    with torch.no_grad():
        torch.testing.assert_close(made(tokens), expected.float(), atol=2e-5, rtol=1e-4)


def test_the_forward_mixer_is_causal():
    made, tokens = mixer(), torch.randn(2, 11, D_MODEL)
    changed = tokens.clone()
    changed[:, 6] += 1
    with torch.no_grad():
        before, after = made(tokens), made(changed)
    assert torch.equal(before[:, :6], after[:, :6])
    assert ((before - after).abs().amax(-1) > 0)[:, 6:].all(), "every later token must see the change"


def test_the_bidirectional_mixer_sees_both_ways():
    made, tokens = mixer(bidirectional=True), torch.randn(1, 11, D_MODEL)
    changed = tokens.clone()
    changed[:, 6] += 1
    with torch.no_grad():
        assert ((made(tokens) - made(changed)).abs().amax(-1) > 0).all()


def test_bidirectional_is_forward_plus_reversed_with_the_other_parameters():
    both, tokens = mixer(bidirectional=True), torch.randn(2, 9, D_MODEL)
    state = both.state_dict()
    shared = {name: value for name, value in state.items() if name in FORWARD}
    swapped = {name: state.get(name.replace("A_log", "A_b_log"), value) for name, value in shared.items()}
    for name in FORWARD:
        first, dot, rest = name.partition(".")
        if f"{first}_b{dot}{rest}" in state:
            swapped[name] = state[f"{first}_b{dot}{rest}"]
    forward, backward = mixer(), mixer()
    forward.load_state_dict(shared)
    backward.load_state_dict(swapped)
    assert not torch.equal(forward.conv1d.weight, backward.conv1d.weight)
    assert not torch.equal(forward.A_log, backward.A_log)
    with torch.no_grad():
        torch.testing.assert_close(
            both(tokens), forward(tokens) + backward(tokens.flip(1)).flip(1), atol=1e-5, rtol=1e-4
        )


def test_every_parameter_of_a_layer_learns_and_samples_do_not_mix():
    torch.manual_seed(0)
    layer, tokens = MambaLayer(D_MODEL, D_STATE), torch.randn(3, 7, D_MODEL)
    out = layer(tokens)
    assert out.shape == tokens.shape
    out.square().mean().backward()
    assert not [name for name, p in layer.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    with torch.no_grad():
        torch.testing.assert_close(layer(tokens[1:2]), out[1:2], atol=1e-5, rtol=1e-4)


@pytest.mark.slow
def test_a_compiled_mixer_equals_eager_with_all_gradients():
    made, tokens = mixer(bidirectional=True), torch.randn(2, 9, D_MODEL, requires_grad=True)
    inputs, results = [tokens, *made.parameters()], []
    for network in (made, torch.compile(made, backend="aot_eager")):
        out = network(tokens)
        results.append([out, *torch.autograd.grad(out.square().sum(), inputs)])
    for eager, compiled in zip(*results, strict=True):
        torch.testing.assert_close(compiled, eager, atol=1e-5, rtol=1e-4)


def test_norms_have_pytorchs_eps_and_state_dicts_carry_it(tmp_path):
    assert [norm.eps for norm in (MambaLayer(8).norm1, MambaLayer(8).norm2)] == [1e-5, 1e-5]
    made = MambaLayer(8, norm_eps=1e-4)
    torch.save(made.state_dict(), tmp_path / "new.pt")
    other = MambaLayer(8)
    other.load_state_dict(torch.load(tmp_path / "new.pt", weights_only=True))
    assert other.norm1.eps == other.norm2.eps == 1e-4
    assert other.state_dict()._metadata["norm1"]["eps"] == 1e-4, "and hand it on"


def test_weights_of_before_keep_the_eps_they_were_trained_with():
    former = MambaLayer(8, norm_eps=1e-6)
    state = former.state_dict()
    for said in state._metadata.values():
        said.pop("eps", None)  # as it was written then
    network = MambaLayer(8)
    network.load_state_dict(state)
    tokens = 1e-3 * torch.randn(1, 5, 8)
    assert torch.equal(network(tokens), former(tokens))
    network.norm1.eps = network.norm2.eps = 1e-5
    assert not torch.equal(network(tokens), former(tokens)), "the test would not see the difference"


def test_a_state_dict_without_metadata_leaves_the_eps_alone():
    network = TokenNorm(8, eps=1e-4)
    network.load_state_dict(dict(TokenNorm(8, eps=1e-3).state_dict()))
    assert network.eps == 1e-4


@pytest.mark.parametrize("eps", ["1e-5", 0.0, float("nan"), 2.0, None])
def test_an_eps_that_cannot_be_is_refused(eps):
    state = TokenNorm(8).state_dict()
    state._metadata[""]["eps"] = eps
    with pytest.raises(RuntimeError, match=r"eps is .* and must lie in \(0, 1\)"):
        TokenNorm(8).load_state_dict(state)


def test_delta_starts_small():
    """Median 0.01, against 0.69 where a later pass over all linear layers wipes the bias, as in the public code."""
    torch.manual_seed(0)
    made, tokens = MambaMixer(384), torch.randn(216, 384)
    x = made.in_proj(tokens).chunk(2, dim=-1)[0]
    dt = F.silu(x) @ made.x_proj.weight[: made.dt_rank].T  # without the convolution, which only mixes neighbours
    delta = F.softplus(made.dt_proj(dt))
    assert 0.008 < delta.median() < 0.015
    torch.nn.init.zeros_(made.dt_proj.bias)
    assert 0.65 < F.softplus(made.dt_proj(dt)).median() < 0.73
