"""What came of many files, and how it is printed."""

from collections import Counter
from dataclasses import dataclass, field


@dataclass(slots=True)
class Failure:
    """A find: which example, and what it did."""

    index: int
    kind: str
    text: str


@dataclass(slots=True)
class Tally:
    """Sums over files."""

    files: Counter[str] = field(default_factory=Counter)
    opened: Counter[str] = field(default_factory=Counter)
    understood: Counter[str] = field(default_factory=Counter)
    folded: Counter[str] = field(default_factory=Counter)
    sites: int = 0
    left: int = 0
    errors: Counter[str] = field(default_factory=Counter)
    verdicts: Counter[str] = field(default_factory=Counter)
    changes: Counter[str] = field(default_factory=Counter)
    lost: list[int] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)

    def add(self, other: "Tally") -> None:
        """Another tally into this one."""
        for name in ("files", "opened", "understood", "folded", "errors", "verdicts", "changes"):
            getattr(self, name).update(getattr(other, name))
        self.sites += other.sites
        self.left += other.left
        self.lost += other.lost
        self.failures += other.failures


def table(total: Tally) -> list[str]:
    """The counts."""
    structured = [kind for kind in total.files if kind != "bytes"]
    share = sum(total.opened[k] for k in structured) / max(1, sum(total.files[k] for k in structured))
    lines = [
        f"files            {total.files.total()}",
        *(
            f"  {kind:14} {count}, {total.opened[kind]} past parsing and header, "
            f"{total.understood[kind]} with a report, {total.folded[kind]} with something folded"
            for kind, count in total.files.most_common()
        ),
        f"past parsing     {share:.1%} of those changed by structure",
        f"sites            {total.sites} folded, {total.left} left",
        "refused files    " + ", ".join(f"{name} {count}" for name, count in total.errors.most_common()),
        "compared         " + ", ".join(f"{name} {count}" for name, count in total.verdicts.most_common()),
        "changes          " + ", ".join(f"{name} {count}" for name, count in total.changes.most_common()),
        "lost in onnxruntime: --example " + ", ".join(map(str, total.lost[:10])),
        f"failures         {len(total.failures)}",
    ]  # fmt: skip
    for kind, count in Counter(failure.kind for failure in total.failures).most_common():
        first = next(failure for failure in total.failures if failure.kind == kind)
        lines += [f"FAILED {count} x {kind}, first: --example {first.index}", f"  {first.text}"]
    return lines
