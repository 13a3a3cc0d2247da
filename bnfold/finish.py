"""The last stages of a fold: write a temporary file, verify it, put it in its place, say so."""

import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from onnx import ModelProto

from bnfold.document import serialise
from bnfold.errors import NotVerified, VerificationFailed
from bnfold.output import staged
from bnfold.results import FoldResult
from bnfold.rewrite import Progress
from bnfold.verify import VerifyOptions
from bnfold.wire import made


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
                self._commit(lambda: None, target, target, data)
            self._say("nothing to fold, the model is untouched", None, 0)
            return
        with staged(document, target, unchanged=True) as stage:
            self._commit(lambda: stage.commit(replace=self.replace), stage.path, target, data)
        self._say("nothing to fold, copied byte for byte", target, self.result.report.before.bytes)

    def write(self, target: Path, *, verify: bool) -> None:
        """Write to a temporary file, verify that file, and only then put it in its place."""
        with staged(self.result._document, target, unchanged=False) as stage:  # noqa: SLF001 - it fills that result
            if verify:
                self._verify(self.source, stage.path)
            written, used = stage.bytes, {path.name for path in stage.data}
            if target == self.source:
                self.result._document.check_unchanged()  # noqa: SLF001 - it fills that result
            self._commit(lambda: stage.commit(replace=self.replace), stage.path, target, stage.data)
        self._say("written", target, written)
        if target == self.source:
            old = tuple(sorted(self.result._document.data_files - used))  # noqa: SLF001 - it fills that result
            self.result.report = replace(self.result.report, superseded=old)

    def keep_in_memory(self, *, verify: bool) -> None:
        """No output: verify from memory, or from a temporary folder where there is external data."""
        self._say("folded in memory", None, 0)
        if not verify:
            return
        document = self.result._document  # noqa: SLF001 - it fills that result
        if not document.data_files:
            self._verify(self.source, b"".join(map(made, document.pieces())))
            return
        with (
            tempfile.TemporaryDirectory(prefix="bnfold-") as folder,
            staged(document, Path(folder) / "model.onnx", unchanged=False) as stage,
        ):
            self._verify(self.source, stage.path)

    def _commit(self, commit: Callable[[], None], model: Path, target: Path, data: Iterable[Path]) -> None:
        """Let `commit` make `model`, with its data files, the file `target`; an undo file comes before."""
        if self.undo is None:
            commit()
            return
        from bnfold.undo.make import undo_file

        folded = {target.name: model} | {path.relative_to(target.parent).as_posix(): path for path in data}
        with undo_file(self.undo, self.result._document, folded, force=self.force):  # noqa: SLF001 - of that result
            commit()
        self.result.report = replace(self.result.report, undo=str(self.undo))

    def _verify(self, source: Path | ModelProto, folded: Path | bytes) -> None:
        from bnfold.verify.judge import verify_pair

        original = serialise(source) if isinstance(source, ModelProto) else source
        verification = verify_pair(original, folded, self.options, self.progress)
        self.result.verification = verification
        self.result.report = replace(self.result.report, verification=verification)
        if verification.verdict == "different":
            self._say("outputs differ, nothing written", None, 0)
            raise VerificationFailed(f"the outputs differ: {verification.reason}", self.result)
        if not verification and not self.allow_unverified:
            self._say("not verified, nothing written", None, 0)
            raise NotVerified(f"could not verify: {verification.reason}", self.result)

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
