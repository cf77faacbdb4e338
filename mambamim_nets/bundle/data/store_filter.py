"""Which volumes of a store are wanted: comparisons of what its index says of them.

An expression is text that may come from anywhere, so it is never evaluated as Python: it is parsed by `ast`, every node
of it must be one of those that `_node` knows, and these are worked out by functions of this module. There are no
calls, attributes, subscripts or arithmetic, so there is nothing that an expression could reach. (numexpr and
pandas.query would be further packages, and both evaluate strings by Python's `eval` or compile in the end.)
"""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Mapping
from typing import Any

__all__ = ["FINDINGS", "Filter"]

FINDINGS = {
    "header": "what the header says contradicts itself, or was assumed",
    "coarse": "an edge of its voxels is longer than 5 mm",
    "thin": "a side of it is shorter than 40 mm, as of a localiser or a slab",
    "nearly_empty": "less than 2 % of its voxels are foreground",
    "intensity": "its values are not those of the modality that it is taken for",
    "few_values": "it has less than 128 different values, as label maps have",
    "clipped": "values beyond the range of int16 were clipped",
    "burnt_in": "its DICOM header says that text may be burnt in",
    "incomplete": "numbers in its DICOM headers say that slices may be missing",
}
"""What may be odd about a volume that is stored all the same; each is a name of filters."""

LONGEST = 2000
Facts = Mapping[str, Any]
_ORDER: dict[type[ast.cmpop], Callable[[Any, Any], bool]] = {
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
}
_EQUALITY: dict[type[ast.cmpop], Callable[[Any, Any], bool]] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.In: lambda value, several: value in several,
    ast.NotIn: lambda value, several: value not in several,
}


class Filter:
    """Whether a volume is wanted.

    Args:
        expression: comparisons (==, !=, <, <=, >, >=, in, not in) of names with numbers, texts, true or false, or lists
            of them, joined by and, or and not. Names are those of `facts`. What a volume does not say is None, which is
            neither smaller nor larger than anything.

    Attributes:
        names: that the expression asks for.

    Raises:
        ValueError: it is something else.
    """

    def __init__(self, expression: str) -> None:
        self.expression = str(expression)
        self.names: set[str] = set()
        try:
            if len(self.expression) > LONGEST:
                raise SyntaxError(f"longer than {LONGEST} characters")
            self._value = self._node(ast.parse(self.expression.strip(), mode="eval").body)
        except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
            raise ValueError(
                f"filter {self.expression[:100]!r} must compare names with values, such as \"modality == 'CT' and"
                f' spacing_z <= 3 and not duplicate": {getattr(error, "msg", None) or error or "nested too deeply"}'
            ) from None

    def __call__(self, facts: Facts) -> bool:
        """Return whether a volume of these facts is wanted.

        Raises:
            ValueError: a text is compared with a number.
        """
        try:
            return bool(self._value(facts))
        except TypeError as error:
            raise ValueError(f"filter {self.expression!r}: {error}; compare numbers with numbers") from None

    @staticmethod
    def facts(line: Mapping[str, Any]) -> dict[str, Any]:
        """Return what a filter may ask of a volume: its line of the index, flat, and each finding as true or false.

        `spacing_x`, `spacing_y`, `spacing_z` are those of the source in mm, along right, anterior and superior;
        `shape_x` ... those of the stored volume.
        """
        facts = {key: line[key] for key in ("id", "source", "path", "subject", "modality", "foreground")}
        for name in ("spacing", "shape"):
            facts |= {f"{name}_{axis}": value for axis, value in zip("xyz", line[name], strict=True)}
        return {**line.get("metadata", {}), **facts, **{name: name in line["findings"] for name in FINDINGS}}

    def _node(self, node: ast.expr) -> Callable[[Facts], Any]:
        """Return a function that works out a node; SyntaxError for one that has no place in a filter."""
        if isinstance(node, ast.BoolOp):
            parts, both = [self._node(part) for part in node.values], isinstance(node.op, ast.And)
            return lambda facts: (all if both else any)(part(facts) for part in parts)
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
            inner = self._node(node.operand)
            return lambda facts: not inner(facts)
        if isinstance(node, ast.Compare):
            return self._comparison(node)
        if isinstance(node, ast.Name):
            name = node.id
            if name.lower() in ("true", "false"):
                return lambda facts: name.lower() == "true"
            self.names.add(name)
            return lambda facts: facts.get(name)
        value = self._literal(node)
        return lambda facts: value

    def _comparison(self, node: ast.Compare) -> Callable[[Facts], bool]:
        sides = [self._node(side) for side in (node.left, *node.comparators)]
        signs = [type(sign) for sign in node.ops]
        for sign in signs:
            if sign not in _ORDER and sign not in _EQUALITY:
                raise SyntaxError(f"{sign.__name__} is no comparison of filters")

        def holds(facts: Facts) -> bool:
            values = [side(facts) for side in sides]
            for sign, left, right in zip(signs, values, values[1:], strict=False):
                if sign in _ORDER and (left is None or right is None):
                    return False
                if not {**_ORDER, **_EQUALITY}[sign](left, right):
                    return False
            return True

        return holds

    def _literal(self, node: ast.expr) -> Any:
        if isinstance(node, ast.List | ast.Tuple):
            return [self._literal(part) for part in node.elts]
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
            value = self._literal(node.operand)
            if isinstance(value, int | float):
                return -value
        if isinstance(node, ast.Constant) and isinstance(node.value, str | int | float | None):
            return node.value
        raise SyntaxError(f"{ast.unparse(node)[:60]!r} has no place in a filter")
