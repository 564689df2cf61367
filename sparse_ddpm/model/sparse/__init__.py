"""Training on the CPU at the cost of the weights that survive: ``SparseUNet``."""

from sparse_ddpm.model.sparse.unet import SparseUNet, missing, unsupported

__all__ = ["SparseUNet", "missing", "unsupported"]
