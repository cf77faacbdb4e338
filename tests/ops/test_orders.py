"""Scan orders: permutations, continuity, the measured jump table and the seeded shuffle."""

import subprocess
import sys

import pytest
import torch

from mambamim_nets.ops import scan_order

GRIDS = [
    (1, 1, 1),
    (1, 1, 7),
    (1, 5, 1),
    (4, 1, 3),
    (2, 2, 2),
    (3, 5, 9),
    (5, 6, 7),
    (6, 6, 6),
    (7, 7, 7),
    (8, 8, 8),
    (12, 10, 6),
]
KINDS = ["raster", "zigzag", "hilbert", "shuffle"]


def steps(shape: tuple[int, int, int], kind: str) -> torch.Tensor:
    """L1 length of every step of the scan."""
    order = scan_order(shape, kind).order
    return torch.stack(torch.unravel_index(order, shape)).diff().abs().sum(0)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", GRIDS, ids=str)
def test_order_is_a_permutation_and_inverse_undoes_it(shape: tuple[int, int, int], kind: str) -> None:
    order, inverse = scan_order(shape, kind, seed=3)
    tokens = torch.arange(shape[0] * shape[1] * shape[2])
    assert order.dtype == inverse.dtype == torch.int64
    assert torch.equal(order.sort().values, tokens)
    assert torch.equal(tokens[order][inverse], tokens)
    assert torch.equal(order[inverse], tokens)


def test_raster_is_the_memory_order() -> None:
    assert torch.equal(scan_order((2, 3, 4), "raster").order, torch.arange(24))


def test_zigzag_on_a_small_grid() -> None:
    assert scan_order((2, 3, 2), "zigzag").order.tolist() == [0, 1, 3, 2, 4, 5, 11, 10, 8, 9, 7, 6]


@pytest.mark.parametrize("shape", GRIDS, ids=str)
def test_zigzag_never_jumps(shape: tuple[int, int, int]) -> None:
    assert (steps(shape, "zigzag") == 1).all()


@pytest.mark.parametrize("size", [2, 4, 8, 16])
def test_hilbert_never_jumps_on_power_of_two_cubes(size: int) -> None:
    assert (steps((size, size, size), "hilbert") == 1).all()


@pytest.mark.parametrize(
    ("shape", "kind", "jumps", "longest"),
    [
        ((6, 6, 6), "raster", 35, 11),
        ((6, 6, 6), "zigzag", 0, 1),
        ((6, 6, 6), "hilbert", 7, 3),
        ((8, 8, 8), "raster", 63, 15),
        ((8, 8, 8), "hilbert", 0, 1),
        ((5, 6, 7), "raster", 29, 12),
        ((5, 6, 7), "hilbert", 10, 6),
        ((7, 7, 7), "raster", 48, 13),
        ((7, 7, 7), "hilbert", 6, 2),
        ((12, 10, 6), "raster", 119, 15),
        ((12, 10, 6), "hilbert", 15, 13),
        ((3, 5, 9), "raster", 14, 13),
        ((3, 5, 9), "hilbert", 7, 5),
    ],
    ids=str,
)
def test_measured_jumps(shape: tuple[int, int, int], kind: str, jumps: int, longest: int) -> None:
    lengths = steps(shape, kind)
    assert (int((lengths > 1).sum()), int(lengths.max())) == (jumps, longest)


def test_shuffle_depends_on_the_seed_alone() -> None:
    first = scan_order((3, 4, 5), "shuffle", seed=7).order
    torch.manual_seed(0)
    assert torch.equal(scan_order((3, 4, 5), "shuffle", seed=7).order, first)
    assert not torch.equal(scan_order((3, 4, 5), "shuffle", seed=8).order, first)


@pytest.mark.slow
def test_shuffle_is_the_same_in_every_process() -> None:
    program = "from mambamim_nets.ops import scan_order; print(scan_order((2, 3, 4), 'shuffle', seed=5).order.tolist())"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout.strip() == str(scan_order((2, 3, 4), "shuffle", seed=5).order.tolist())


def test_returned_tensors_belong_to_the_caller() -> None:
    order, inverse = scan_order((2, 2, 2), "zigzag")
    expected = order.clone()
    order.zero_()
    inverse.zero_()
    assert torch.equal(scan_order((2, 2, 2), "zigzag").order, expected)


@pytest.mark.parametrize(
    ("shape", "kind", "seed", "message"),
    [
        ((4, 4), "raster", None, r"shape \(4, 4\) must be three sizes"),
        ((4, 0, 4), "raster", None, r"each >= 1"),
        ((4, 4, 4), "morton", None, r"'morton' must be one of raster, zigzag, hilbert, shuffle"),
        ((4, 4, 4), "shuffle", None, r"seed None.*seed=0"),
        ((4, 4, 4), "shuffle", -1, r"seed -1"),
    ],
    ids=["two-axes", "empty-axis", "kind", "no-seed", "negative-seed"],
)
def test_errors_name_the_rule(shape: tuple[int, ...], kind: str, seed: int | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        scan_order(shape, kind, seed=seed)  # type: ignore[arg-type]
