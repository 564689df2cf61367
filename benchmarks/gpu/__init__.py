"""The parts of ``benchmarks/gpu_suite.py``: what is measured on a GPU, and how.

`results`, `budget` and `supervise` know nothing of torch: which measurements are kept, when to
stop, and a child process that may die without taking the others along. `devices` times calls: in
CUDA graphs on a GPU, by the wall clock in a dry run. `correctness`, `steps`, `ceilings` and
`layers` fill the sections; `report` and `picture` show what they left.
"""
