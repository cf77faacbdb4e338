"""What names of structures say: left and right, nested tumours, what a structure is in DICOM's terms, usual volumes."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["nested_regions", "segment_code", "sided_pairs", "usual_ml"]

logger = logging.getLogger("mambamim_nets")

LEFT, RIGHT = ("left", "lt", "l", "links", "gauche"), ("right", "rt", "r", "rechts", "droit", "droite")
AMERICAN = {"oesophagus": "esophagus", "oedema": "edema", "tumour": "tumor", "tumours": "tumor", "caecum": "cecum"}
SYNONYMS = {"tumor": "neoplasm"}  # of the names of codes
ABNORMAL = ("tumor", "lesion", "cyst", "edema", "nodule", "metastasis", "necrosis", "hemorrhage", "neoplasm", "mass")
CATEGORIES = {
    False: ["91723000", "SCT", "Anatomical Structure"],
    True: ["49755003", "SCT", "Morphologically Abnormal Structure"],
}
SIDES = {"left": ["7771000", "SCT", "Left"], "right": ["24028007", "SCT", "Right"]}
# DICOM PS3.16: types of segmented anatomy (7192, 4, 7153 of the brain) and of lesions and tissues (7159, 7166, 7151)
CONTEXT_GROUPS = (7192, 4, 7153, 7159, 7166, 7151)
# ml, wide limits of adults, from which only a wrong grid or another structure leads away; see docs/PLANNING.md
USUAL_ML = {"liver": (500, 4500), "spleen": (20, 2000), "kidney": (30, 600), "brain": (600, 2000), "heart": (200, 2000)}


def _tokens(name: str) -> list[str]:
    spaced = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name)
    return [token for token in re.split(r"[^a-z0-9]+", spaced.lower()) if token]


def sided_pairs(names: Sequence[str]) -> list[tuple[str, str]]:
    """Return the structures that are there once on the left and once on the right, as (left, right)."""
    sides: dict[str, dict[tuple[str, ...], str]] = {"left": {}, "right": {}}
    for name in names:
        tokens = _tokens(name)
        for side, words in (("left", LEFT), ("right", RIGHT)):
            found = [token for token in tokens if token in words]
            if len(found) == 1:
                sides[side][tuple(token for token in tokens if token not in words)] = name
    return [(left, sides["right"][key]) for key, left in sides["left"].items() if key and key in sides["right"]]


def nested_regions(labels: Mapping[str, int]) -> dict[str, list[int]]:
    """Return nested regions that the names of labels suggest, as in BraTS or KiTS; {} if they suggest none.

    They are to be proposed, never assumed: whether a label lies within another is for a person to say.
    """
    words = {name: set(AMERICAN.get(token, token) for token in _tokens(name)) for name in labels}

    def value(*wanted: str) -> int | None:
        found = [name for name, held in words.items() if any(w in held for w in wanted)]
        return labels[found[0]] if len(found) == 1 else None

    oedema = value("edema")
    enhancing = [name for name, held in words.items() if "enhancing" in held and "non" not in held]
    core = [name for name, held in words.items() if held & {"necrotic", "necrosis", "ncr", "net"} or "non" in held]
    if oedema is not None and len(enhancing) == len(core) == 1:
        inner, outer = labels[enhancing[0]], labels[core[0]]
        return {"WT": sorted([outer, oedema, inner]), "TC": sorted([outer, inner]), "ET": [inner]}
    lesions = [name for name, held in words.items() if held & {"tumor", "lesion", "cancer"}]
    organs = [name for name in labels if name not in lesions and not words[name] & set(ABNORMAL)]
    if len(lesions) == len(organs) == 1 and len(labels) == 2:
        return {f"{organs[0]} with {lesions[0]}": sorted(labels.values()), lesions[0]: [labels[lesions[0]]]}
    return {}


def usual_ml(name: str) -> tuple[float, float] | None:
    """Return the limits between which the volume of a whole organ of this name lies, in ml; None if not known."""
    tokens = set(_tokens(name)) - {*LEFT, *RIGHT}
    return USUAL_ML.get(next(iter(tokens))) if len(tokens) == 1 else None


def segment_code(name: str) -> dict[str, Any] | None:
    """Return the codes of a structure for DICOM-SEG, from pydicom's dictionary, where its name is the code's meaning.

    Left and right become modifiers. None where no meaning is equal, or without pydicom: a wrong code would be worse
    than none.
    """
    try:
        from pydicom.sr._cid_dict import cid_concepts
        from pydicom.sr.codedict import codes
    except ImportError:
        logger.warning("no codes for DICOM-SEG without pydicom: pip install pydicom, then plan again")
        return None
    tokens = [AMERICAN.get(token, token) for token in _tokens(name)]
    side = next((s for s, words in (("left", LEFT), ("right", RIGHT)) if set(tokens) & set(words)), None)
    bare = [token for token in tokens if token not in (*LEFT, *RIGHT)]
    for words, modifier in ((tokens, None), (bare, side)):  # "left atrium" is a structure of its own
        wanted = "".join(SYNONYMS.get(word, word) for word in words)
        for group in CONTEXT_GROUPS:
            keyword = next((k for k in cid_concepts[group].get("SCT", []) if k.lower() == wanted), None)
            if keyword is not None:
                code = getattr(codes.SCT, keyword)
                abnormal = bool(set(words) & set(ABNORMAL))
                found = {"category": CATEGORIES[abnormal], "type": [code.value, "SCT", code.meaning]}
                return found | ({"modifiers": [SIDES[modifier]]} if modifier else {})
    return None
