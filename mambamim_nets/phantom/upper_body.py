"""Tables of the kind "ctorg": chest, neck and head above the synthetic abdomen and pelvis of "amos", in body mm.

CT-ORG labels bone as one class and lungs, kidneys as pairs; the field of view reaches from the hips to the crown, so
that one coarse subject has all six labels. Shoulders are cut by the sides of the volume, arms are left out.
"""

import numpy as np
from numpy.random import Generator

from mambamim_nets.phantom.anatomy import Part
from mambamim_nets.phantom.pelvis import AMOS_HU

CTORG_HU = AMOS_HU | {"lung vessel": 70, "trachea": -980, "brain": 38, "brain fluid": 10}
"""HU of every tissue of the kind "ctorg", those of "amos" first."""

APEX, NECK, JAW = 296, (285, 70), 470
"""Top of the lungs; where the trunk starts to narrow and over what length; where the neck ends in the head."""

SPINE = ((0, -66, 140, 19), (0, -72, 220, 17), (0, -66, 300, 15), (0, -45, 370, 13), (0, -40, 446, 12))
CHEST = (  # painted after the frame of the abdomen, which it prolongs; never over air, skin and the fat under it
    Part("muscle", [[(34, -86, 140, 15), (34, -92, 220, 14), (30, -84, 300, 16), (22, -62, 380, 15)]], mirror=True),
    Part("bone", [SPINE], wobble=0.02),
    Part("marrow", [[(x, y, z, r - 3) for x, y, z, r in SPINE]], only=("bone",), wobble=0.02),
    Part("bone", [[(0, -93, 140, 12), (0, -99, 220, 11), (0, -92, 300, 10), (0, -70, 370, 9), (0, -64, 440, 8)]]),
    Part("cord", [[(0, -91, 140, 7), (0, -96, 220, 7), (0, -88, 300, 7), (0, -64, 370, 6), (0, -58, 470, 6)]]),
    Part("heart", [[(-10, 20, 132, 38), (-45, 32, 122, 26)], [(-6, 12, 138, 36), (2, 10, 172, 26)]]),
    Part("bone", [[(0, 80, 128, 8), (0, 80, 190, 8), (0, 75, 252, 10)]], squash=(2, 0.8, 1)),
)  # fmt: skip
SHOULDERS = (
    Part("subcutaneous fat", [[(112, -28, 256, 58), (150, -24, 236, 50)]], only=("air", "skin"), mirror=True),
    Part("muscle", [[(108, -30, 250, 48), (148, -26, 236, 40)], [(40, -62, 330, 22), (112, -40, 280, 26)]],
         only=("subcutaneous fat", "skin"), mirror=True),
    Part("bone", [
        [(12, 74, 264, 7), (60, 58, 280, 6), (118, 0, 288, 7)],  # clavicle, then shoulder blade, then upper arm
        [(72, -102, 168, 4), (74, -104, 272, 5)], [(100, -92, 210, 5), (80, -102, 270, 5)],
        [(76, -102, 264, 6), (124, -50, 276, 10)],
        [(146, -26, 262, 22), (160, -24, 200, 13)],
    ], mirror=True),
    Part("marrow", [[(146, -26, 262, 18), (160, -24, 200, 9)]], only=("bone",), mirror=True),
)  # fmt: skip
HEAD = (
    Part("skin", [[(0, -8, 546, 82)], [(0, 24, 486, 60)], [(0, 18, 446, 48)]], (0.95, 1.12, 1), only=("air",)),
    Part("muscle", [[(0, -8, 546, 78)], [(0, 22, 486, 56)], [(0, 14, 446, 44)]], (0.95, 1.12, 1), only=("skin",)),
    Part("bone", [[(0, -10, 548, 74)]], squash=(0.95, 1.17, 1), wobble=0.02),
    Part("bone", [[(0, 30, 494, 26), (0, 52, 480, 22)], [(0, -40, 478, 14), (0, -30, 500, 24)]]),
    Part("bone", [[(52, -4, 486, 7), (48, 14, 448, 7), (0, 62, 436, 9)]], mirror=True),
    Part("air", [[(0, 44, 496, 10), (0, 64, 480, 12)], [(0, 20, 470, 9), (0, 14, 440, 8)]], only=("bone", "muscle")),
    Part("brain", [[(0, -10, 549, 67)]], squash=(0.95, 1.18, 1), wobble=0.02),
    Part("brain fluid", [[(10, 18, 552, 7), (14, -30, 556, 8)]], only=("brain",), mirror=True),
)  # fmt: skip
AIRWAYS = (
    Part("trachea", [[(0, -22, 212, 9), (0, -8, 300, 9), (0, 6, 360, 9), (0, 12, 440, 8)]], wobble=0),
    Part("trachea", [[(0, -22, 212, 8), (36, -26, 190, 7)]], mirror=True, wobble=0),
)
ARCH = (
    Part("great vessel", [
        [(-14, -42, 156, 12), (-16, -44, 214, 13), (-8, -22, 240, 14), (10, 6, 224, 15), (2, 16, 176, 16)],
        [(26, -6, 150, 10), (26, 2, 250, 9)], [(22, -2, 250, 5), (26, -10, 440, 5)],
        [(-22, -10, 240, 5), (-26, -10, 440, 5)],
        [(-14, 22, 176, 14), (-10, -4, 206, 13)],
    ]),
)  # fmt: skip
HILUM, OUTWARDS = (34.0, -24.0, 188.0), ((1, 0.1, 0.5), (0.8, 0.6, -0.3), (0.8, -0.5, -0.8), (0.4, 0.1, 1))
"""Where the vessels of a lung start, and where to."""


def narrowing(z: np.ndarray) -> np.ndarray:
    """Return how far the trunk has narrowed to the neck at heights z (mm): from 0 below the shoulders to 1."""
    start, length = NECK
    t = np.clip((z - start) / length, 0, 1)
    return t * t * (3 - 2 * t)


def first_branches(rng: Generator) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return origin and heading of the vessels of both lungs."""
    return [
        (np.array(HILUM) * (side, 1, 1), np.array(heading) * (side, 1, 1) + rng.normal(0, 0.1, 3))
        for side in (1, -1)
        for heading in OUTWARDS
    ]
