"""What a body says in each of its contexts: a graph has one, a local function one for each call."""

import contextlib
from abc import abstractmethod
from collections.abc import Iterator

from bnfold.constants import Constant, Constants
from bnfold.shapes import Shapes
from bnfold.tensors import ByCall, Tensor

Context = tuple[Constants, Shapes]


class Contexts:
    """The constants and shapes of a body, by context. What is noted is noted for all.

    Attributes:
        constants: the constants, in the context that is looked at.
        shapes: the shapes of values, in that context.
        unbound: for a function, its inputs that are not constant in every call, each with the reason.
    """

    constants: Constants
    shapes: Shapes

    def __init__(self) -> None:
        self.unbound: dict[str, str] = {}
        self._contexts: list[Context] = []

    @abstractmethod
    def _new_context(self, bound: dict[str, Constant]) -> Context:
        """Constants and shapes, with some inputs bound to constants."""

    def bind(self, arguments: list[dict[str, Constant]], unbound: dict[str, str]) -> None:
        """Say which inputs of the function are constant: for each call, those that are, by name.

        `unbound` are the others, each with the reason.
        """
        self.unbound = unbound
        self._contexts = []
        for bound in arguments:
            self._contexts.append(self._new_context(bound))
        self.constants, self.shapes = self._contexts[0]

    @property
    def contexts(self) -> int:
        """How many calls there are to think of; 1 for a graph, and for a function that nothing calls."""
        return len(self._contexts)

    @contextlib.contextmanager
    def using(self, context: int) -> Iterator[None]:
        """Answer for one call of the function, by its number, as long as the block runs; otherwise for the first."""
        self.constants, self.shapes = self._contexts[context]
        try:
            yield
        finally:
            self.constants, self.shapes = self._contexts[0]

    def remember(self, name: str, tensor: Tensor) -> None:
        """Note that the constant `name` has these numbers now."""
        for context, (constants, _) in enumerate(self._contexts):
            constants.stored[name] = tensor.each[context] if isinstance(tensor, ByCall) else tensor

    def forget(self, name: str) -> None:
        """Note that there is no constant `name` any more."""
        for constants, _ in self._contexts:
            constants.stored.pop(name, None)

    def renamed(self, old: str, new: str) -> None:
        """Note that what was called `old` is called `new`."""
        for _, shapes in self._contexts:
            shapes.renamed(old, new)

    def changed(self) -> None:
        """Note that the graph has changed: more may follow for shapes than before."""
        for _, shapes in self._contexts:
            shapes.derive_again()
