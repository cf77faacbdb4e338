"""What tests of pictures draw, and what they look for in a figure."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

LABELS = {0: "background", 1: "anterior", 2: "posterior"}
SHAPE = (13, 17, 11)


def scan(seed: int = 0) -> np.ndarray:
    """Draw an image (D, H, W)."""
    return np.random.default_rng(seed).normal(size=SHAPE).astype(np.float32)


def label() -> np.ndarray:
    """Return a label map (D, H, W) of two boxes."""
    values = np.zeros(SHAPE, np.uint8)
    values[3:8, 4:8, 3:8], values[3:8, 8:12, 3:8] = 1, 2
    return values


def panels(figure: Figure) -> list[Axes]:
    """Return the axes that show an image."""
    return [axis for axis in figure.axes if axis.images]


def texts(figure: Figure) -> str:
    """Return all that is written in a figure, a line for each."""
    found = [text.get_text() for text in figure.texts]
    found += [text.get_text() for legend in figure.legends for text in legend.get_texts()]
    for axis in figure.axes:
        found += [axis.get_title(), axis.get_ylabel(), *(text.get_text() for text in axis.texts)]
    return "\n".join(found)
