"""Matrix formats for weights: `Dense`, `CSR` and `BSR`, exact inverses of their ``to_dense``.

A convolution weight ``[Cout, Cin, kh, kw]`` is the matrix ``[Cout, Cin * kh * kw]`` of the same
memory order; column ``(ci * kh + i) * kw + j`` is the tap (i, j) of input channel ci.
"""

from sparse_ddpm.formats.bsr import BSR
from sparse_ddpm.formats.csr import CSR
from sparse_ddpm.formats.dense import Dense

Matrix = Dense | CSR | BSR

__all__ = ["BSR", "CSR", "Dense", "Matrix"]
