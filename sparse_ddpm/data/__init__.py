"""Training images, from files to one uint8 array in memory: `load_images` and `Images`."""

from sparse_ddpm.data.images import Images
from sparse_ddpm.data.load import load_images

__all__ = ["Images", "load_images"]
