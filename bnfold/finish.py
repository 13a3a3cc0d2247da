"""The last stages of a fold: write a temporary file, verify it, put it in its place, say so."""

import contextlib
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from onnx import ModelProto

from bnfold.cleanup import unneeded_data
from bnfold.document import serialise
from bnfold.errors import NotVerified, TooLargeError, VerificationFailed
from bnfold.output import staged
from bnfold.relocated import Relocated, relocated
from bnfold.results import FoldResult
from bnfold.rewrite import Progress
from bnfold.staging import Files, Staged, cannot_write
from bnfold.text import plural
from bnfold.verification import VerifyOptions
from bnfold.wire import made


@contextlib.contextmanager
def _temporary_folder() -> Iterator[Path]:
    """A folder of our own, in the system's place for such.

    Raises:
        OutputError: there is none that can be written to.
    """
    try:
        folder = tempfile.TemporaryDirectory(prefix="bnfold-")
    except OSError as error:
        raise cannot_write(Path(tempfile.gettempdir()), error) from None
    with folder as name:
        yield Path(name)


@dataclass(slots=True)
class Finish:
    """The last stages: write, verify, commit. Fills in the result's verification and report."""

    result: FoldResult
    source: Path | ModelProto
    options: VerifyOptions
    started: float
    replace: bool
    allow_unverified: bool
    progress: Progress | None
    undo: Path | None = None
    force: bool = False

    def write_unchanged(self, target: Path | None, *, in_place: bool) -> None:
        """Nothing folds: a byte copy, which needs no runtime."""
        document = self.result._document  # noqa: SLF001 - it fills that result
        data = [] if target is None else [target.parent / location for location in sorted(document.data_files)]
        if target is None or in_place:
            if target is not None:
                files = {path.relative_to(target.parent).as_posix(): path for path in (target, *data)}
                with self._undo(files):
                    pass
            self._say("nothing to fold, the model is untouched", None, 0)
            return
        own = {path.relative_to(target.parent).as_posix(): path for path in data}
        with staged(document, target, unchanged=True) as stage:
            stage.commit(
                replace=self.replace, old=lambda: unneeded_data(target, document.data_paths()),
                around=lambda files: self._undo({**files, **own, **files}),
            )  # fmt: skip
            self._say("nothing to fold, copied byte for byte", target, self.result.report.before.bytes)
            self._say_of_files(stage)

    def write(self, target: Path, *, verify: bool) -> None:
        """Write to a temporary file, verify that file, and only then put it in its place."""
        document = self.result._document  # noqa: SLF001 - it fills that result
        with staged(document, target, unchanged=False) as stage:
            if verify:
                self._verify(stage.path)
            if target == self.source:
                old = frozenset(document.data_files)
                stage.commit(replace=True, check=document.check_unchanged, old=lambda: old, around=self._undo)
                stage.adopt()
            else:
                stage.commit(
                    replace=self.replace,
                    old=lambda: unneeded_data(target, document.data_paths()),
                    around=self._undo,
                )
            self._say("written", target, stage.bytes)
            self._say_of_files(stage)

    def _say_of_files(self, stage: Staged) -> None:
        """What became of old data, and of a model that is too large for one file."""
        notes: tuple[str, ...] = ()
        if stage.outgrown:
            moved = plural(stage.outgrown, "tensor")
            notes = (f"one file ends at 2 GiB: {moved} went into external data, {stage.data[0].name}",)
        report = self.result.report
        self.result.report = replace(report, superseded=stage.superseded, removed=stage.removed, notes=notes)

    def keep_in_memory(self, *, verify: bool) -> None:
        """No output: verify from memory, or from a temporary folder where the model is more than one file."""
        self._say("folded in memory", None, 0)
        if not verify:
            return
        document = self.result._document  # noqa: SLF001 - it fills that result
        if not document.data_files:
            with contextlib.suppress(TooLargeError):
                self._verify(b"".join(map(made, document.pieces())))
                return
        with _temporary_folder() as folder, staged(document, folder / "model.onnx", unchanged=False) as stage:
            self._verify(stage.path)

    @contextlib.contextmanager
    def _undo(self, folded: Files) -> Iterator[None]:
        """Where an undo file is wanted, it is in its place before the block puts the model there."""
        if self.undo is None:
            yield
            return
        from bnfold.undo.make import undo_file

        with undo_file(self.undo, self.result._document, folded, force=self.force):  # noqa: SLF001 - of that result
            yield
        self.result.report = replace(self.result.report, undo=str(self.undo))

    def _verify(self, folded: Path | bytes) -> None:
        from bnfold.verification.whole import verify_whole

        verification = verify_whole(self._original(), folded, self.options, self.progress)
        self.result.verification = verification
        self.result.report = replace(self.result.report, verification=verification)
        if verification.verdict == "different":
            self._say("outputs differ, nothing written", None, 0)
            raise VerificationFailed(f"the outputs differ: {verification.reason}", self.result)
        if not verification and not self.allow_unverified:
            self._say("not verified, nothing written", None, 0)
            raise NotVerified(f"could not verify: {verification.reason}", self.result)

    def _original(self) -> Path | bytes | Relocated:
        if isinstance(self.source, ModelProto):
            return serialise(self.source)
        return relocated(self.source, self.result._document.data_files)  # noqa: SLF001 - it fills that result

    def _say(self, status: str, output: Path | None, size: int) -> None:
        report = self.result.report
        after = replace(report.after, bytes=size) if report.after else None
        self.result.report = replace(
            report,
            status=status,
            output=None if output is None else str(output),
            after=after,
            seconds=time.perf_counter() - self.started,
        )
