"""The networks of `models/` and what it takes to train, randomise, export and check them.

Only `tools/make_models.py` uses this package; bnfold itself never imports it.
"""
