"""From a site to a plan: who upstream or downstream can take its map in, and what changes for that.

`pull`: can what lies upstream of the site produce affine(value) by changing constants only?
`push`: can everything downstream of the site accept x in place of affine(x)?

Each operator answers for itself (`rules`); a carrier's answer is further questions, so both are loops over open
questions: upstream from the last node to the first, downstream from the first to the last, so that a value that is
reached on several paths is settled once, by all of them together. They end with a Plan or with the first Refusal.
Nothing is changed here. `siblings` and `partial` are the two ways that are neither.
"""

from bnfold.plan.pull import pull
from bnfold.plan.push import push
from bnfold.plan.walk import ends

__all__ = ["ends", "pull", "push"]
