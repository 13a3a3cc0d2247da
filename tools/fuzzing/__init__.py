"""Hostile and odd model files by the hundred thousand: what `tools/fuzz.py --files` is made of.

files.py      processes, watchdog, finds                   tally.py     the counts
seeds.py      the models to start from                     mutate.py    which changes, and how many
fields.py     changes to any field                         graphs.py    to nodes and edges
attributes.py changes to attributes                        values.py    to constants, shapes, outputs, data files
raw.py        changes to the bytes                         scopes.py    to nested graphs and functions
tree.py       the messages of a model                      minimise.py  a find made small
target.py     what one file goes through, and what must hold
compare.py    original and folded file in onnxruntime, in another process
"""
