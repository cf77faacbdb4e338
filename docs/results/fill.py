"""What hidden tokens are filled with, and whether it matters: python docs/results/fill.py DATA FOLDS PRETRAINED.

Prints for a MambaMIM pre-trained with TOKI on the left atrium, with skip connections or without, on the images of fold
0, which it has not seen, with five fixed masks each: the learnt Abar; the masked error with other fills in the place of
the learnt one; and how much of the tokens that the encoder gives where nothing is hidden each fill explains at hidden
positions, given the others.
"""

import itertools
import json
import sys
from collections.abc import Callable
from functools import partial

import torch
from monai.transforms import (
    CenterSpatialCrop,
    Compose,
    LoadImage,
    Orientation,
    ScaleIntensityRangePercentiles,
    SpatialPad,
)
from torch import Tensor

from mambamim_nets import HyMamba, MambaMIM
from mambamim_nets.masking import place_tokens, random_visible, token_grid
from mambamim_nets.ops.interpolation import toki

SIZE, RATIO, MASKS = (96, 64, 48), 0.75, 5
Fill = Callable[[Tensor, Tensor], Tensor]  # visible tokens (B, K, C) and visible (B, T) bool -> (B, T, C), raster order


def state_space(a: float, tokens: Tensor, visible: Tensor) -> Tensor:
    """Fill by TOKI with one Abar for all channels, and the Bbar of gain 1."""
    a_bar = torch.full((tokens.shape[-1],), a)
    return toki(tokens, visible, a_bar, 1 - a_bar)


def constant(tokens: Tensor, visible: Tensor) -> Tensor:
    """Fill with the mean of the visible tokens of a sample."""
    return torch.stack([place_tokens(t[None], v[None], t.mean(0))[0] for t, v in zip(tokens, visible, strict=True)])


def zero(tokens: Tensor, visible: Tensor) -> Tensor:
    """Fill with zeros."""
    return place_tokens(tokens, visible, tokens.new_zeros(()))


def nothing(tokens: Tensor, visible: Tensor) -> Tensor:
    """Return zeros for all tokens, the visible ones too: the whole Mamba stage is switched off."""
    return tokens.new_zeros(*visible.shape, tokens.shape[-1])


def in_space(power: float, tokens: Tensor, visible: Tensor) -> Tensor:
    """Fill with the mean of all visible tokens, weighted by their distance in the grid to a negative power."""
    places = torch.cartesian_prod(*(torch.arange(float(n)) for n in token_grid(SIZE)))
    filled = place_tokens(tokens, visible, tokens.new_zeros(()))
    for sample, kept in enumerate(visible):
        weights = torch.cdist(places[~kept], places[kept]) ** -power
        filled[sample, ~kept] = (weights / weights.sum(1, keepdim=True)) @ tokens[sample]
    return filled


def images(data: str, folds: str) -> Tensor:
    """Return the images of fold 0, cut to the window's size around their middle: (N, 1, 96, 64, 48)."""
    scale = ScaleIntensityRangePercentiles(0.5, 99.5, 0, 1, clip=True, channel_wise=True)
    load = LoadImage(ensure_channel_first=True, image_only=True)
    prepare = Compose([load, Orientation("RAS", labels=None), scale, SpatialPad(SIZE), CenterSpatialCrop(SIZE)])
    with open(folds, encoding="utf-8") as file:
        cases = json.load(file)["folds"][0]
    return torch.stack([prepare(f"{data}/imagesTr/{case}.nii.gz").as_tensor() for case in cases])


def main(data: str, folds: str, pretrained: str) -> None:
    """Print everything."""
    x = images(data, folds)
    state = torch.load(pretrained, weights_only=True)["model"]
    model = MambaMIM(HyMamba(size="tiny"), skip=any(".project." in key for key in state)).eval()
    model.load_state_dict(state)
    a_bar, b_bar = (value.detach() for value in model.toki.discretise())
    gain = b_bar / (1 - a_bar)
    for name, value in (("Abar", a_bar), ("gain of a long gap, Bbar / (1 - Abar)", gain)):
        low, middle, high = (value.quantile(q).item() for q in (0.0, 0.5, 1.0))
        print(f"{name}: {low:.3f} .. {middle:.3f} .. {high:.3f} over channels")
    fills: dict[str, Fill] = {
        "as learnt": model.fill_tokens,
        **{f"Abar {a:g}": partial(state_space, a) for a in (0.0, 0.135, 0.5, 0.9)},
        "mean of the visible tokens": constant,
        "zeros": zero,
        "all tokens zero, the visible ones too": nothing,
        "nearest in space": partial(in_space, 20.0),
        "inverse square of the distance in space": partial(in_space, 2.0),
    }
    masks = [
        random_visible(len(x), token_grid(SIZE), RATIO, torch.Generator().manual_seed(seed)) for seed in range(MASKS)
    ]
    with torch.no_grad():
        whole = torch.cat([model.encoder.encode(image[None]).tokens for image in x])
        for name, fill in fills.items():
            model.fill_tokens = fill  # type: ignore[method-assign]
            losses = torch.stack(
                [model(x[i : i + 1], m[i : i + 1]).loss for m, i in itertools.product(masks, range(len(x)))]
            )
            print(f"{name}: masked error {losses.mean():.4f}, explained {100 * explained(fill, whole, masks):.1f} %")


def explained(fill: Fill, tokens: Tensor, masks: list[Tensor]) -> float:
    """Return 1 - squared error of a fill at hidden positions over that of the mean token of the data, on all channels.

    Args:
        fill: what is judged.
        tokens: (B, T, C) of a whole image.
        masks: (B, 1, d, h, w) bool each, True = visible.
    """
    wrong = total = 0.0
    middle = tokens.mean((0, 1))
    for mask in masks:
        visible = mask.flatten(1)
        given = tokens[visible].view(len(tokens), -1, tokens.shape[-1])
        hidden = tokens[~visible]
        wrong += (fill(given, visible)[~visible] - hidden).square().sum().item()
        total += (hidden - middle).square().sum().item()
    return 1 - wrong / total


if __name__ == "__main__":
    main(*sys.argv[1:])
