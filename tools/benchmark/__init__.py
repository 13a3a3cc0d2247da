"""What `tools/bench.py` runs, how it measures a process, and how it prints.

Only `tools/bench.py` uses this package; bnfold itself never imports it. Nor does it import onnx: the peak memory
that the kernel reports for a child starts from what its parent held, so the parent stays small.
"""
