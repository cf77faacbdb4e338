"""Tables of the kind "kits": kidneys of the synthetic abdomen with tumours and cysts, as KiTS23 labels them."""

from numpy.random import Generator

from mambamim_nets.phantom.anatomy import BELLY, HU, Part

KITS_HU = HU | {"tumour": 85, "tumour core": 45, "cyst": 8}
"""HU of every tissue of the kind "kits", those of the abdomen first."""

KIDNEYS = {part.tissue: part.paths[0] for part in BELLY if part.tissue.endswith("kidney")}
REPLACED = (*KIDNEYS, "renal sinus", "fat")


def masses(rng: Generator) -> list[Part]:
    """Return one or two tumours, some with a dark core, and one to three cysts, each on a place of its own.

    Tumours (radius 9 to 24 mm) and cysts (6 to 14 mm) bulge out of the kidney; cysts never replace a tumour.
    """
    places = [(node, side) for side, path in enumerate(KIDNEYS.values()) for node in path]
    chosen = [places[i] for i in rng.permutation(len(places))]
    tumours = int(rng.integers(1, 3))
    parts = []
    for number, ((x, y, z, radius), side) in enumerate(chosen[: tumours + int(rng.integers(1, 4))]):
        outwards = (1 if side == 0 else -1, rng.uniform(-0.6, 0.8), rng.uniform(-0.4, 0.4))
        away = rng.uniform(0.5, 1.0) * radius
        middle = (x + away * outwards[0], y + away * outwards[1], z + away * outwards[2])
        if number < tumours:
            size = rng.uniform(9, 24)
            parts += [Part("tumour", [[(*middle, size)]], only=REPLACED, wobble=0.15)]
            if size > 15:
                parts += [Part("tumour core", [[(*middle, 0.5 * size)]], only=("tumour",), wobble=0.3)]
        else:
            parts += [Part("cyst", [[(*middle, rng.uniform(6, 14))]], only=REPLACED, wobble=0.03)]
    return parts
