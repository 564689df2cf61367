"""Draw images from a sampler file with onnxruntime alone, into one PNG.

    sparse-ddpm export --what sampler -o digits.onnx
    python sample.py digits.onnx digits.png -n 16 --seed 0

Needs numpy, onnxruntime and pillow; nothing of sparse-ddpm.
"""

from __future__ import annotations

import argparse

import numpy as np
import onnxruntime
from PIL import Image


def draw(path: str, n: int, seed: int) -> np.ndarray:
    """``n`` images, uint8 ``[n, H, W, C]``."""
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    rng = np.random.default_rng(seed)
    # A sampler that adds noise on the way has a second input. Of either, only the number of images
    # is free; a file with the noise of a seed inside has no inputs.
    noise = {
        value.name: rng.standard_normal(
            [size if isinstance(size, int) else n for size in value.shape], dtype=np.float32
        )
        for value in session.get_inputs()
    }
    (images,) = session.run(["images"], noise)
    return np.rint((images.clip(-1, 1) + 1) * 127.5).astype(np.uint8).transpose(0, 2, 3, 1)


def grid(images: np.ndarray) -> np.ndarray:
    """All images in rows, near a square: uint8 ``[H', W', C]``."""
    n, height, width, channels = images.shape
    across = int(np.ceil(np.sqrt(n)))
    down = -(-n // across)
    sheet = np.zeros((down * across, height, width, channels), dtype=np.uint8)
    sheet[:n] = images
    rows = sheet.reshape(down, across, height, width, channels).swapaxes(1, 2)
    return rows.reshape(down * height, across * width, channels)


def main() -> None:
    parser = argparse.ArgumentParser(description="Draw images from a sampler file.")
    parser.add_argument("model", help="written by sparse-ddpm export --what sampler")
    parser.add_argument("picture", help="the PNG to write")
    parser.add_argument("-n", type=int, default=16, help="images (default: 16)")
    parser.add_argument("--seed", type=int, default=0, help="of the noise (default: 0)")
    args = parser.parse_args()
    picture = grid(draw(args.model, args.n, args.seed))
    Image.fromarray(picture.squeeze(2) if picture.shape[2] == 1 else picture).save(args.picture)


if __name__ == "__main__":
    main()
