"""Evaluating a segment of a graph in float64, and with it how large the numbers were that were added up.

Each value comes as a pair: `value`, what the graph computes, and `size`, what it would be if no two numbers ever
cancelled: the same sums over absolute values. One rounding of every constant moves a value by at most

    unit roundoff * size        (for each layer of products on the way)

so that `size` is what a difference between two foldings has to be held against, not the value itself, which may be
next to zero. Where an operator's size is not known (`operators`), the segment counts as not evaluated.
"""

from collections.abc import Mapping

import numpy as np

from bnfold.errors import InvalidModelError
from bnfold.graph import GraphFacts
from bnfold.rounding import Array
from bnfold.verification.onenode import NotEvaluatedError, UnfitError
from bnfold.verification.operators import Number, apply, number_of

__all__ = ["Evaluator", "NotEvaluatedError", "Number", "UnfitError"]


class Evaluator:
    """Computes values of a graph in float64 from those of `given`, which are computed no further.

    Constants are read in their storage type and widened; those that nodes compute are taken as they are, or with
    `through_constants` computed here, with what that does to their sizes. A value is computed once.
    """

    def __init__(self, facts: GraphFacts, given: Mapping[str, Array], *, through_constants: bool = False) -> None:
        self._facts = facts
        self._through = through_constants
        self._known: dict[str, Number] = {name: number_of(array) for name, array in given.items()}

    def target(self, value: str) -> Number:
        """The value as its own node makes it, even where it is given.

        Raises:
            NotEvaluatedError: an operator, type or shape on the way cannot be evaluated.
        """
        producer = self._facts.producer(value)
        if producer is None:
            raise NotEvaluatedError(f"{value!r} is made by no node")
        outputs = self._run(producer)
        return outputs[list(self._facts.nodes[producer].output).index(value)]

    def _value(self, name: str) -> Number | None:
        """An input of a node, everything before it computed; None for an absent one."""
        if not name:
            return None
        if name not in self._known:
            open_ = [name]
            while open_:
                missing = self._missing(open_[-1])
                if missing:
                    open_ += missing
                else:
                    self._settle(open_.pop())
        return self._known[name]

    def _missing(self, name: str) -> list[str]:
        """What has to be computed before `name`."""
        producer = self._facts.producer(name)
        if name in self._known or producer is None or not self._is_open(name):
            return []
        return [n for n in self._facts.nodes[producer].input if n and n not in self._known and self._is_open(n)]

    def _is_open(self, name: str) -> bool:
        """Whether a node has to be evaluated for it."""
        producer = self._facts.producer(name)
        if producer is None or name in self._facts.constants.stored:
            return False
        is_computed = self._through and self._facts.op(producer) != "Constant"
        return is_computed or self._facts.constants.find(name) is None

    def _settle(self, name: str) -> None:
        if name in self._known:
            return
        constant = None if self._is_open(name) else self._facts.constants.find(name)
        producer = self._facts.producer(name)
        if constant is not None:
            if constant.tensor.dtype is None:
                raise NotEvaluatedError(f"constant {name!r} is of a type that is not evaluated")
            self._known[name] = number_of(constant.tensor.array())
        elif producer is None:
            raise NotEvaluatedError(f"{name!r} is not known")
        else:
            outputs = self._run(producer)
            self._known |= {n: o for n, o in zip(self._facts.nodes[producer].output, outputs, strict=False) if n}

    def _run(self, index: int) -> list[Number]:
        node, op = self._facts.nodes[index], self._facts.op(index)
        inputs = [self._value(name) for name in node.input]
        try:
            with np.errstate(all="ignore"):
                return apply(node, op, inputs, self._facts.opset())
        except NotEvaluatedError:
            raise
        except ValueError as error:
            raise UnfitError(f"{op}: {error}") from None
        except (ArithmeticError, IndexError, InvalidModelError, TypeError, KeyError, AssertionError) as error:
            raise NotEvaluatedError(f"{op}: {type(error).__name__}: {error}") from None
