"""Where a model comes from, as the API takes it: a path or a ModelProto."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from onnx import ModelProto

from bnfold.errors import InvalidModelError, UsageError
from bnfold.text import printable

if TYPE_CHECKING:
    from os import PathLike


def source_of(model: "str | PathLike[str] | ModelProto") -> Path | ModelProto:
    """A path, or the ModelProto itself.

    Raises:
        UsageError: it is neither.
    """
    if isinstance(model, ModelProto):
        return model
    try:
        return Path(model)
    except TypeError:
        raise UsageError(f"a model is a path or a ModelProto, not {type(model).__name__}") from None


@contextlib.contextmanager
def naming(source: Path | ModelProto) -> Iterator[None]:
    """Errors in a model say which file it is.

    Raises:
        InvalidModelError: the block did, or its graphs are nested too deeply.
    """
    try:
        yield
    except (InvalidModelError, RecursionError) as error:
        deep = isinstance(error, RecursionError)
        problem = InvalidModelError("its graphs are nested too deeply") if deep else error
        if isinstance(source, ModelProto):
            raise problem from None
        raise type(problem)(f"{printable(str(source))}: {problem}") from None
