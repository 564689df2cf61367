"""The benchmark: this package's engine beside what a user would pick instead.

Every engine runs the same Program, so the same masked weights with weight standardisation folded.
Each lives in a process of its own (`worker`), is checked against the float64 reference, and is
then timed in turns with the others (`measure`). `engines` names them; `ours`, `torch_peer` and
`onnx_peers` build them inside their process; `run` puts a benchmark together, `report` shows it.
`layers` is the roofline of our own engine, layer by layer.
"""
