"""Wrong folds, each wrong in one small way, and right ones: what a verifier is held to.

`networks` builds small networks, `folder` folds them (by its own arithmetic, not bnfold's). `maps`, `arrays`,
`places`, `structure` and `interface` say in which ways a fold can be wrong, `corpus` lists all mutants; `honest` has
right folds, `criteria` what other tools go by, `rows` what each says of a pair. `evaluate` judges in float64 how far
each mutant is off. Only `honest` and `rows` use bnfold, and neither to tell right from wrong.
"""
