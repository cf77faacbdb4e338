"""Tables of the synthetic abdomen: the values of its tissues and where each structure runs, in body mm."""

from collections.abc import Sequence
from typing import NamedTuple

Nodes = Sequence[tuple[float, float, float, float]]


class Part(NamedTuple):
    """A tissue swept along paths; `only` lists the tissues it may replace, `mirror` adds the other side."""

    tissue: str
    paths: Sequence[Nodes]
    squash: tuple[float, float, float] = (1, 1, 1)
    only: tuple[str, ...] = ()
    mirror: bool = False
    wobble: float = 0.06


BOWEL = {"duodenum": "bowel"}  # what the kinds that do not label it paint as bowel
HU = {
    "air": -1000, "skin": 20, "subcutaneous fat": -105, "fat": -105, "muscle": 55, "bone": 420, "marrow": 190,
    "disc": 85, "cord": 30, "lung": -840, "heart": 150, "bowel": 75, "bowel content": 25, "bowel gas": -750,
    "liver": 110, "spleen": 125, "right kidney": 175, "left kidney": 175, "renal sinus": -20, "gallbladder": 8,
    "oesophagus": 50, "stomach": 85, "stomach content": 25, "stomach gas": -850, "aorta": 190,
    "inferior vena cava": 155, "portal and splenic veins": 180, "pancreas": 90, "right adrenal gland": 70,
    "left adrenal gland": 70, "hepatic vessel": 165, "liver tumour": 50, "pancreatic tumour": 40,
}  # fmt: skip

FRAME = (  # muscles, spine and heart; may replace lung
    Part("muscle", [[(42, -58, -140, 23), (27, -54, 10, 10)], [(36, -88, -140, 19), (34, -86, 140, 15)]], mirror=True),
    Part("heart", [[(-10, 20, 132, 38), (-45, 32, 122, 26)]]),
    Part("bone", [[(0, -60, -140, 23), (0, -66, 140, 19)]], wobble=0.02),
    Part("marrow", [[(0, -60, -140, 20), (0, -66, 140, 16)]], only=("bone",), wobble=0.02),
    Part("bone", [[(0, -100, -140, 5), (0, -100, 140, 5)], [(0, -90, -140, 13), (0, -93, 140, 13)]]),
    Part("cord", [[(0, -89, -140, 8), (0, -92, 140, 8)]]),
)
COLON_PATH = (
    (88, 5, -140, 20), (84, 12, -48, 19), (50, 56, -50, 15), (-30, 62, -62, 15), (-88, 22, -20, 16),
    (-92, -14, -140, 15),
)  # fmt: skip
LIVER_PATH = ((84, -14, -12, 30), (76, -8, 38, 60), (46, 16, 58, 48), (4, 34, 64, 32), (-36, 42, 68, 18))
PANCREAS_PATH = ((30, 12, -26, 15), (20, 22, -10, 12), (-6, 30, 4, 11), (-34, 8, 16, 11), (-62, -26, 30, 9))
STOMACH_PATH = ((-52, -8, 74, 30), (-58, 22, 42, 28), (-48, 45, 8, 23), (-18, 54, -12, 17), (16, 42, -8, 11))
BELLY = (  # below the diaphragm
    Part("bowel", [COLON_PATH]),
    Part("duodenum", [[(22, 40, -8, 10), (46, 16, -14, 12), (44, 2, -48, 11), (0, 2, -62, 10), (-40, 20, -50, 11)]]),
    Part("liver", [LIVER_PATH], squash=(1, 1, 0.95)),
    Part("stomach", [STOMACH_PATH]),
    Part("stomach content", [[(x, y, z, r - 5) for x, y, z, r in STOMACH_PATH]], only=("stomach",)),
    Part("stomach gas", [[(-55, 46, 44, 13), (-48, 64, 12, 14)]], only=("stomach", "stomach content")),
    Part("spleen", [[(-68, -60, 64, 19), (-92, -42, 50, 27), (-105, -12, 30, 22), (-106, 4, 16, 12)]]),
    Part("right kidney", [[(52, -50, 2, 22), (60, -44, -24, 25), (62, -38, -50, 21)]], squash=(1, 0.95, 1)),
    Part("left kidney", [[(-50, -52, 14, 22), (-58, -46, -12, 25), (-61, -40, -38, 21)]], squash=(1, 0.95, 1)),
    Part("renal sinus", [[(38, -36, -22, 9), (55, -42, -26, 8)]], only=("right kidney",), wobble=0.2),
    Part("renal sinus", [[(-36, -38, -10, 9), (-53, -44, -14, 8)]], only=("left kidney",), wobble=0.2),
    Part("gallbladder", [[(52, 36, 6, 9), (58, 52, -10, 14), (60, 60, -22, 12)]]),
    Part("pancreas", [PANCREAS_PATH]),
    Part("right adrenal gland", [
        [(33, -28, 46, 3.5), (36, -34, 42, 4.5), (34, -44, 34, 4)], [(36, -34, 42, 4), (42, -46, 30, 4)],
    ]),
    Part("left adrenal gland", [[(-31, -30, 36, 4.5), (-28, -42, 30, 4)], [(-31, -30, 36, 4), (-41, -40, 28, 4)]]),
)  # fmt: skip
VESSELS = (  # may replace lung
    Part("oesophagus", [[(-4, -32, 140, 9), (-9, -26, 98, 9), (-22, -16, 84, 9), (-36, -12, 78, 9)]]),
    Part("aorta", [
        [(-14, -42, 140, 12), (-10, -30, 40, 11), (-8, -26, -84, 9), (-26, -20, -140, 7)],
        [(-8, -26, -84, 8), (12, -14, -140, 6)],
    ]),
    Part("inferior vena cava", [
        [(26, -12, 128, 11), (27, -12, 84, 12), (24, -24, 20, 11), (18, -30, -90, 11), (30, -28, -140, 9)],
    ], squash=(1.1, 0.9, 1)),
    Part("portal and splenic veins", [
        [(14, 14, -90, 5), (12, 8, -10, 7), (20, 4, 8, 8), (42, 6, 36, 8)],
        [(12, 8, -8, 6), (-16, 10, 6, 5.5), (-42, -12, 22, 5), (-74, -36, 44, 4.5)],
    ]),
)  # fmt: skip
