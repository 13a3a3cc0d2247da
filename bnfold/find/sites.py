"""All sites of a graph that are wanted, whatever their kind."""

from fnmatch import fnmatchcase

from bnfold.find import Site, batchnorm, chain
from bnfold.graph import GraphFacts
from bnfold.options import FoldOptions
from bnfold.text import unmarked


def find_sites(facts: GraphFacts, options: FoldOptions) -> list[Site]:
    """The sites that are there now, in topological order."""
    found = list(batchnorm.sites(facts))
    if options.sources != "bn":
        chains = list(chain.sites(facts))
        found = sorted([*found, *chains], key=lambda site: facts.position(site.nodes[0])) if chains else found
    if not options.only and not options.exclude:
        return found
    return [site for site in found if is_wanted(facts, site.nodes, options)]


def is_wanted(facts: GraphFacts, nodes: tuple[int, ...], options: FoldOptions) -> bool:
    """Whether the name or an output of a node matches --only, if given, and none matches --exclude."""
    made = [name for node in nodes for name in (facts.nodes[node].name, *facts.nodes[node].output)]
    names = [unmarked(name) for name in made if name]
    chosen = not options.only or any(fnmatchcase(name, pattern) for name in names for pattern in options.only)
    return chosen and not any(fnmatchcase(name, pattern) for name in names for pattern in options.exclude)
