"""The canvas on which a subject is painted."""

from collections.abc import Iterable, Sequence
from functools import cached_property

import numpy as np
from numpy.random import Generator

from mambamim_nets.phantom.anatomy import Part

Axes = list[np.ndarray]


class Canvas:
    """A map of tissues over a deformed grid of body millimetres."""

    def __init__(self, rng: Generator, axes: Axes, tissues: Iterable[str], size: float, bend: float, scale: float):
        """Start a canvas.

        Args:
            rng: source of everything random about the subject.
            axes: world coordinates along each axis, mm.
            tissues: names; the first fills the canvas.
            size: half the longest side of the field of view, mm.
            bend: standard deviation of the displacement, mm.
            scale: spread of the body's size, relative.
        """
        self.rng, self.axes, self.size = rng, axes, size
        self.index = {name: value for value, name in enumerate(tissues)}
        self.tissue = np.zeros([len(axis) for axis in axes], np.uint8)
        growth = 1 + rng.uniform(-scale, scale, 3)
        grid = np.meshgrid(*axes, indexing="ij", sparse=True)
        body = [g / s + bend * self.waves(4) for g, s in zip(grid, growth, strict=True)]
        self.body = np.stack(body).astype(np.float32)
        self.rough = np.clip(self.waves(24), -2, 2)

    @cached_property
    def extent(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """Per axis, the least and the largest body coordinate in each slice."""
        others = ((1, 2), (0, 2), (0, 1))
        return [(p.min(o), p.max(o)) for p, o in zip(self.body, others, strict=True)]

    def waves(self, knots: int) -> np.ndarray:
        """Return a smooth random field of about unit variance: cubic B-splines, `knots` intervals across the view."""
        field = self.rng.standard_normal((knots + 4,) * 3).astype(np.float32)
        for axis in self.axes:
            position = np.clip(axis / self.size, -1, 1) * (knots / 2) + knots / 2 + 1.5
            t = np.abs(position[:, None] - np.arange(knots + 4))
            weight = np.where(t < 1, 2 / 3 - t**2 + t**3 / 2, np.clip(2 - t, 0, None) ** 3 / 6)
            # The axis done goes last (d h w -> h w d), so three turns restore the order.
            field = np.tensordot(field, weight.astype(np.float32), axes=(0, 1))
        return field * 3  # knots of unit variance leave 1/9 between them

    def fill(self, tissue: str, where: np.ndarray) -> None:
        """Set the voxels of a bool array."""
        self.tissue[where] = self.index[tissue]

    def where(self, *tissues: str) -> np.ndarray:
        """Return the voxels of these tissues."""
        return np.isin(self.tissue, [self.index[name] for name in tissues])

    def paint(self, parts: Sequence[Part], keep: Sequence[str] = (), shift: float = 2.0, girth: float = 0.08) -> None:
        """Paint parts in order, each with its own random shift (mm) and girth, never over the tissues `keep`."""
        for part in parts:
            may = np.zeros(len(self.index), bool)
            may[[self.index[name] for name in part.only or set(self.index) - set(keep)]] = True
            offset, factor = np.append(self.rng.normal(0, shift, 3), 0), 1 + self.rng.uniform(-girth, girth)
            for path in part.paths:
                nodes = (np.asarray(path) + offset) * (1, 1, 1, factor)
                self._sweep(part, nodes, may)
                if part.mirror:
                    self._sweep(part, nodes * (-1, 1, 1, 1), may)

    def _sweep(self, part: Part, nodes: np.ndarray, may: np.ndarray) -> None:
        """Sweep a ball along the nodes: distance to each segment over the radius interpolated there, below 1 inside."""
        column, squash = (slice(None), None, None, None), np.array(part.squash, np.float32)
        nodes = nodes.astype(np.float32)
        for start, stop in zip(nodes, nodes[1:] if len(nodes) > 1 else nodes, strict=False):
            reach = max(start[3], stop[3]) * squash * np.exp(2 * part.wobble)
            low, high = np.minimum(start, stop)[:3] - reach, np.maximum(start, stop)[:3] + reach
            # Slices of each axis that the segment can meet, from the body coordinates that occur in them.
            hits = [np.flatnonzero((e[1] > a) & (e[0] < b)) for e, a, b in zip(self.extent, low, high, strict=True)]
            if not all(hit.size for hit in hits):
                continue
            box = tuple(slice(hit[0], hit[-1] + 1) for hit in hits)
            point = (self.body[(slice(None), *box)] - start[:3][column]) / squash[column]
            along = (stop - start)[:3] / squash
            t = np.clip(np.tensordot(along, point, 1) / max(along @ along, 1e-6), 0, 1)
            distance = np.sqrt(((point - t * along[column]) ** 2).sum(0))
            radius = (start[3] + t * (stop[3] - start[3])) * np.exp(part.wobble * self.rough[box])
            view = self.tissue[box]
            view[(distance < radius) & may[view]] = self.index[part.tissue]
