"""GPU kernels in Triton, one operation a file. They know torch tensors and integers.

Nothing is imported here: ``TRITON_INTERPRET=1`` has to be set before a kernel's module is.
"""
