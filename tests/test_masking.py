"""Masks: how many blocks stay, which, and where tokens are put back."""

import pytest
import torch

from mambamim_nets.masking import check_visible, expand_visible, place_tokens, random_visible, token_grid


@pytest.mark.parametrize("grid", [(6, 6, 6), (2, 3, 2), (5, 1, 7)], ids=str)
@pytest.mark.parametrize("ratio", [0.0, 0.25, 0.75, 0.9])
def test_every_sample_keeps_exactly_k(grid, ratio):
    tokens = grid[0] * grid[1] * grid[2]
    keep = round((1 - ratio) * tokens)
    visible = random_visible(4, grid, ratio)
    assert visible.shape == (4, 1, *grid) and visible.dtype == torch.bool
    assert visible.flatten(1).sum(1).tolist() == [keep] * 4


def test_samples_and_draws_differ_and_generator_repeats():
    first = random_visible(4, (6, 6, 6), 0.75, torch.Generator().manual_seed(3))
    again = random_visible(4, (6, 6, 6), 0.75, torch.Generator().manual_seed(3))
    other = random_visible(4, (6, 6, 6), 0.75, torch.Generator().manual_seed(4))
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert not torch.equal(first[0], first[1])


def test_mask_is_uniform_over_positions():
    share = random_visible(4000, (2, 2, 2), 0.75, torch.Generator().manual_seed(0)).float().mean(0)
    torch.testing.assert_close(share, torch.full_like(share, 0.25), atol=0.03, rtol=0)


def test_blocks_to_avoid_are_kept_only_where_there_are_too_few_others():
    avoid = torch.zeros(2, 1, 2, 3, 2, dtype=torch.bool)
    avoid[0, 0, 0], avoid[1, 0, :, 1:] = True, True  # 6 and 8 of 12
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        visible = random_visible(2, (2, 3, 2), 0.5, generator, avoid=avoid)
        assert visible.flatten(1).sum(1).tolist() == [6, 6]
        assert (visible & avoid).flatten(1).sum(1).tolist() == [0, 2]
    plain = [
        random_visible(2, (2, 3, 2), 0.5, torch.Generator().manual_seed(1), avoid=a) for a in (None, avoid & False)
    ]
    assert torch.equal(*plain), "nothing to avoid changes no draw"


def test_expand_repeats_blocks():
    visible = random_visible(2, (2, 3, 1), 0.5)
    fine = expand_visible(visible, 4)
    assert fine.shape == (2, 1, 8, 12, 4)
    assert torch.equal(fine[..., ::4, ::4, ::4], visible) and torch.equal(fine[..., 3::4, 3::4, 3::4], visible)


def test_tokens_are_put_in_their_places_by_hand():
    visible = torch.tensor([[False, True, True], [True, True, False]])
    placed = place_tokens(torch.tensor([[[1.0], [2.0]], [[3.0], [4.0]]]), visible, torch.tensor([9.0]))
    assert placed[..., 0].tolist() == [[9, 1, 2], [3, 4, 9]]


def test_errors_name_value_and_remedy():
    with pytest.raises(ValueError, match=r"1\.0 must lie in \[0, 1\)"):
        random_visible(1, (2, 2, 2), 1.0)
    with pytest.raises(ValueError, match="hides all 8 blocks"):
        random_visible(1, (2, 2, 2), 0.99)
    with pytest.raises(ValueError, match=r"\(96, 96, 90\).*try \(96, 96, 96\)"):
        token_grid((96, 96, 90))
    with pytest.raises(ValueError, match="2 spatial axes"):
        token_grid((96, 96))
    uneven = torch.zeros(2, 1, 2, 2, 2, dtype=torch.bool)
    uneven[0, 0, 0] = True
    with pytest.raises(ValueError, match="same number"):
        check_visible(uneven, 2, (2, 2, 2))
    with pytest.raises(ValueError, match="must be bool"):
        check_visible(uneven.float(), 2, (2, 2, 2))
