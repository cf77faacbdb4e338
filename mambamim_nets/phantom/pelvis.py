"""Tables of the kind "amos": the pelvis below the synthetic abdomen, in its body mm, and the values of its tissues.

Below the abdomen's field of view the body widens to the hips, which carry pelvic bones, thigh bones and muscles; the
abdominal aorta and the inferior vena cava end where they fork, as AMOS22 labels them.
"""

from collections.abc import Sequence

import numpy as np
from numpy.random import Generator

from mambamim_nets.phantom.anatomy import HU, VESSELS, Nodes, Part

AMOS_HU = HU | {
    "duodenum": 70, "great vessel": 170, "cartilage": 70, "urinary bladder": 35, "urine": 8,
    "urine with contrast": 420, "prostate or uterus": 65,
}  # fmt: skip
"""HU of every tissue of the kind "amos", those of the abdomen first."""

MR = {
    "air": 0, "skin": 300, "subcutaneous fat": 900, "fat": 820, "muscle": 330, "bone": 70, "marrow": 620, "disc": 300,
    "cord": 380, "lung": 40, "heart": 340, "bowel": 370, "bowel content": 240, "bowel gas": 15, "liver": 500,
    "spleen": 360, "right kidney": 400, "left kidney": 400, "renal sinus": 700, "gallbladder": 210, "oesophagus": 340,
    "stomach": 370, "stomach content": 200, "stomach gas": 15, "aorta": 160, "inferior vena cava": 190,
    "portal and splenic veins": 220, "pancreas": 550, "right adrenal gland": 400, "left adrenal gland": 400,
    "hepatic vessel": 230, "liver tumour": 300, "pancreatic tumour": 300, "duodenum": 380, "great vessel": 170,
    "cartilage": 350, "urinary bladder": 330, "urine": 130, "urine with contrast": 130, "prostate or uterus": 340,
}  # fmt: skip
"""T1-like values of the same tissues, arbitrary units."""


def _between(upper: Nodes, lower: Nodes, count: int) -> list[Nodes]:
    """Return `count` paths from one to the other: a plate, where their distance is below a radius."""
    a, b = np.array(upper, float), np.array(lower, float)
    return [[(x, y, z, r) for x, y, z, r in a + t * (b - a)] for t in np.linspace(0, 1, count)]


def _inside(paths: Sequence[Nodes], rim: float) -> list[Nodes]:
    return [[(x, y, z, r - rim) for x, y, z, r in path] for path in paths]


CREST = ((36, -94, -120, 7), (72, -80, -90, 6), (106, -34, -80, 6), (117, 8, -98, 6.5), (112, 36, -128, 7))
BRIM = ((34, -92, -172, 7), (58, -76, -180, 8), (76, -42, -184, 9), (86, -10, -184, 12), (88, 14, -186, 10))
WING = _between(CREST, BRIM, 10)
SACRUM = (
    [(0, -66, -142, 20), (0, -84, -160, 17), (0, -99, -182, 12), (0, -101, -202, 8), (0, -92, -224, 5)],
    [(0, -72, -140, 16), (22, -82, -140, 15), (22, -92, -164, 12), (10, -100, -190, 8)],
)
HIP = (  # ischium; upper and lower branch of the pubic bone
    [(80, -32, -206, 14), (70, -42, -232, 12), (60, -38, -260, 15)],
    [(72, 14, -206, 10), (36, 38, -222, 8), (8, 42, -232, 9), (8, 40, -242, 8)],
    [(8, 38, -244, 7), (32, 10, -262, 7), (56, -32, -264, 10)],
)
THIGH_HEAD = ((88, -7, -212, 23.5),)
THIGH = ((90, -8, -214, 16), (108, -14, -230, 14), (122, -18, -238, 16), (124, -10, -262, 16), (124, -6, -300, 14))

LIMBS = (  # muscles, then bones; painted over fat, never over the skin and the fat under it
    Part("muscle", [
        [(42, -58, -140, 23), (58, -20, -172, 20), (70, 30, -208, 18), (78, 12, -250, 15)],  # psoas
        *_between(((58, -66, -112, 9), (94, -24, -102, 10), (102, 10, -120, 10)),
                  ((62, -48, -175, 9), (78, -12, -178, 12), (82, 22, -186, 12)), 5),  # iliacus
        [(70, 12, -200, 16), (74, 14, -300, 24)], [(34, -88, -140, 19), (28, -110, -180, 12)],
    ], only=("fat",), mirror=True),
    Part("muscle", [
        [(36, -116, -150, 12), (78, -104, -190, 26), (100, -78, -232, 28), (112, -52, -270, 20)],  # the gluteal ones
        [(52, -112, -190, 20), (66, -104, -240, 24)],
        [(92, -72, -110, 14), (106, -60, -160, 24)], [(118, -30, -100, 10), (122, -14, -150, 18), (130, -16, -226, 14)],
        [(118, 26, -130, 10), (118, 36, -190, 18), (112, 40, -300, 26)],
        [(26, -90, -178, 9), (96, -58, -206, 10)], [(60, -34, -212, 10), (54, -22, -246, 10)],
        [(34, 24, -240, 16), (58, 14, -262, 30), (60, 8, -300, 40)], [(70, -62, -262, 20), (70, -60, -300, 34)],
    ], only=("fat",), mirror=True),
    Part("fat", [[(0, -138, -176, 6), (0, -134, -220, 14), (0, -120, -300, 20)]], only=("muscle",)),
    Part("bone", WING, mirror=True, wobble=0.02),
    Part("marrow", _inside(WING, 2.5), only=("bone",), mirror=True, wobble=0.02),
    Part("bone", SACRUM, mirror=True),
    Part("marrow", _inside(SACRUM, 3), only=("bone",), mirror=True),
    Part("bone", [*HIP, [(80, -6, -206, 31)]], mirror=True, wobble=0.02),
    Part("marrow", [*_inside(HIP, 3), [(74, -6, -202, 26)]], only=("bone",), mirror=True, wobble=0.02),
)  # fmt: skip
# One girth and no shift: head, socket and neck must fit each other.
JOINTS = (
    Part("cartilage", [_inside([THIGH_HEAD], -3)[0]], only=("fat", "muscle", "bone", "marrow"), mirror=True, wobble=0),
    Part("bone", [THIGH_HEAD, THIGH], mirror=True, wobble=0),
    Part("marrow", _inside([THIGH_HEAD, THIGH], 2.5), only=("bone",), mirror=True, wobble=0),
)

ARTERIES = (
    ((-8, -26, -86, 8), (26, -20, -128, 6.5), (54, -2, -176, 6), (55, 46, -214, 5.5), (58, 50, -300, 6)),
    ((-8, -26, -86, 8), (-38, -20, -128, 6.5), (-58, -2, -176, 6), (-55, 46, -214, 5.5), (-58, 50, -300, 6)),
    ((30, -18, -134, 5), (46, -52, -166, 4)),
    ((-42, -18, -134, 5), (-48, -52, -166, 4)),
)
VEINS = (
    ((18, -30, -92, 9), (36, -34, -134, 8), (50, -10, -180, 7.5), (43, 42, -214, 7), (46, 40, -300, 8)),
    ((18, -30, -92, 8), (-22, -36, -124, 8), (-48, -12, -180, 7.5), (-43, 42, -214, 7), (-46, 40, -300, 8)),
)
TRUNKS = (  # as in VESSELS, ended where they fork
    *(part for part in VESSELS if part.tissue not in ("aorta", "inferior vena cava")),
    Part("great vessel", [*ARTERIES, *VEINS]),
    Part("aorta", [[(-14, -42, 160, 12), (-10, -30, 40, 11), (-8, -26, -84, 9)]]),
    Part("inferior vena cava", [[(26, -12, 128, 11), (27, -12, 84, 12), (24, -24, 20, 11), (18, -30, -90, 11)]],
         squash=(1.1, 0.9, 1)),
)  # fmt: skip

SIGMOID = (
    (-92, -14, -136, 15), (-74, 14, -160, 14), (-40, 18, -172, 13), (-12, -14, -156, 13), (0, -48, -166, 13),
    (0, -72, -186, 14), (0, -70, -212, 17), (0, -52, -236, 15), (0, -60, -256, 10), (0, -66, -274, 8),
)  # fmt: skip
LOOPS = (np.array((-66, -5, -176)), np.array((66, 58, -58)), 8)
"""Box in which the small bowel wanders, and its number of loops."""


def organs(rng: Generator) -> list[Part]:
    """Return bladder, prostate or uterus, and the end of the bowel, of a man or a woman."""
    woman, contrast, filling = rng.random() < 0.5, rng.random() < 0.4, rng.uniform(24, 36 if rng.random() < 0.7 else 44)
    squash = (1.2, 0.95, 0.9)
    middle = (0, 8 if woman else 4, -230 + 0.9 * filling)
    gas = [[(*point[:3], rng.uniform(5, 9))] for point in SIGMOID[2:7] if rng.random() < 0.5]
    parts = [
        Part("bowel", [SIGMOID]),
        Part("bowel content", _inside([SIGMOID], 4), only=("bowel",), wobble=0.25),
        Part("bowel gas", gas, only=("bowel content",)),
        Part("urinary bladder", [[(*middle, filling)]], squash),
    ]
    if woman:
        size = rng.uniform(0.8, 1.15)
        path = ((0, -32, -226, 13), (0, -24, -204, 17), (rng.uniform(-8, 8), -6, -180, 23))
        parts += [Part("prostate or uterus", [[(x, y, z, size * r) for x, y, z, r in path]])]
    else:
        size = rng.uniform(17, 23)
        parts += [Part("prostate or uterus", [[(0, -14, -222 - size, size)]], (1.2, 0.95, 0.95))]
    parts += [Part("urine", [[(*middle, filling - 4)]], squash, only=("urinary bladder",))]
    if contrast:  # heavier than urine, so it lies behind
        pool = (middle[0], middle[1] - 0.75 * filling, middle[2], 0.8 * filling)
        parts += [Part("urine with contrast", [[pool]], (4, 0.6, 4), only=("urine",), wobble=0)]
    return parts
