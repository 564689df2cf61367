"""Any folder or zip of images. A zip is read in place: nothing is ever extracted."""

from __future__ import annotations

import io
import os
import struct
import warnings
import zipfile
import zlib
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps
from tqdm import tqdm

from sparse_ddpm.data.images import Images, check_bytes, pixels, square, to_channels
from sparse_ddpm.errors import DataError, expected

SUFFIXES = {
    ".bmp": "BMP",
    ".gif": "GIF",
    ".jpeg": "JPEG",
    ".jpg": "JPEG",
    ".pbm": "PPM",
    ".pgm": "PPM",
    ".png": "PNG",
    ".ppm": "PPM",
    ".tif": "TIFF",
    ".tiff": "TIFF",
    ".webp": "WEBP",
}
"""Which files count as images, and the Pillow formats: no other decoder is ever tried."""

MAX_PIXELS = 100_000_000
MAX_FILE = 2**29

_FORMATS = sorted(set(SUFFIXES.values()))


def load_folder(path: Path, image_size: int | None, channels: int | None) -> Images:
    """Read every image below the folder, or in the zip, ``path``, in the order of its names.

    Without ``image_size`` all images must have one size; with it the central square of each is
    resampled. Without ``channels`` the result is grey if every image is grey. Transparent pixels
    are laid over white, EXIF rotation is applied, of an animation the first frame counts.
    Raises `DataError`.
    """
    with ExitStack() as stack:
        if path.is_dir():
            names, read = _folder(path)
        elif path.is_file():
            names, read = _zip(path, stack)
        else:
            raise DataError(expected(f"images:{path}", "a folder or zip of images", "no such path"))
        chosen = sorted({name for name in names if _is_image(name)})
        if not chosen:
            kinds = ", ".join(SUFFIXES)
            found = f"none among {len(names)} files"
            if any(name.endswith(".zip") for name in names):
                found += " (give the path of the zip file itself)"
            raise DataError(expected(str(path), f"at least one image ({kinds})", found))
        images = _decode_all(path, chosen, read, image_size, channels)
    name = path.resolve().name
    return Images(images, class_labels(chosen), name.removesuffix(".zip") or "images")


def class_labels(names: list[str]) -> NDArray[np.int64] | None:
    """Label each file by its folder if, below what all share, each lies in just one folder."""
    parents = [PurePosixPath(name).parts[:-1] for name in names]
    levels = zip(*parents, strict=False)  # to the shallowest
    shared = next((i for i, level in enumerate(levels) if len(set(level)) > 1), None)
    if shared is None:
        return None
    if any(len(parts) != shared + 1 for parts in parents):
        return None
    classes = {name: i for i, name in enumerate(sorted({parts[shared] for parts in parents}))}
    return np.array([classes[parts[shared]] for parts in parents], dtype=np.int64)


def _is_image(name: str) -> bool:
    path = PurePosixPath(name)
    hidden = any(part.startswith(".") or part == "__MACOSX" for part in path.parts)
    return path.suffix.lower() in SUFFIXES and not hidden


def _folder(path: Path) -> tuple[list[str], Callable[[str], bytes]]:
    """Names of all files below ``path``, with forward slashes, and how to read one."""

    def fail(error: OSError) -> None:
        raise DataError(expected(str(path), "a folder that can be read", error)) from error

    names = [
        (Path(root) / name).relative_to(path).as_posix()
        for root, _, files in os.walk(path, onerror=fail)
        for name in files
    ]

    def read(name: str) -> bytes:
        with open(path / name, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size > MAX_FILE:
                raise DataError(expected(f"{path}/{name}", f"at most {MAX_FILE} bytes", size))
            return file.read()

    return names, read


def _zip(path: Path, stack: ExitStack) -> tuple[list[str], Callable[[str], bytes]]:
    try:
        archive = stack.enter_context(zipfile.ZipFile(path))
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        wanted = "a folder or a whole zip of images"
        raise DataError(expected(str(path), wanted, f"another file ({error})")) from error

    def read(name: str) -> bytes:
        size = archive.getinfo(name).file_size  # no more than this is read, whatever follows
        if size > MAX_FILE:
            raise DataError(expected(f"{path}: {name}", f"at most {MAX_FILE} bytes", size))
        return archive.read(name)

    return [info.filename for info in archive.infolist() if not info.is_dir()], read


def _decode_all(
    path: Path,
    names: list[str],
    read: Callable[[str], bytes],
    image_size: int | None,
    channels: int | None,
) -> NDArray[np.uint8]:
    out: NDArray[np.uint8] | None = None
    # Our own limit on pixels is checked for every file, in place of Pillow's process-wide one.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        bar = tqdm(names, desc=path.name, unit="image", delay=1, leave=False, disable=None)
        for i, name in enumerate(bar):
            image = _decode(f"{path}/{name}", read, name, image_size)
            if channels is not None:
                image = to_channels(image[None], channels)[0]
            if out is None:
                check_bytes(len(names), *image.shape)
                out = np.empty((len(names), *image.shape), dtype=np.uint8)
            if image.shape[:2] != out.shape[1:3]:
                wanted = f"{out.shape[2]}x{out.shape[1]} as {names[0]} (or give an image size)"
                got = f"{image.shape[1]}x{image.shape[0]}"
                raise DataError(expected(f"{path}/{name}: image size", wanted, got))
            if image.shape[2] > out.shape[3]:
                check_bytes(len(names), *image.shape)
                out = to_channels(out, 3)
            out[i] = image
    assert out is not None
    return out


def _decode(
    what: str, read: Callable[[str], bytes], name: str, image_size: int | None
) -> NDArray[np.uint8]:
    """Decode one image to uint8 ``[H, W, 1 or 3]``."""
    try:
        with Image.open(io.BytesIO(read(name)), formats=_FORMATS) as opened:
            width, height = opened.size
            if width * height > MAX_PIXELS:
                wanted = f"at most {MAX_PIXELS} pixels"
                raise DataError(expected(what, wanted, f"{width} x {height}"))
            picture = _plain(what, ImageOps.exif_transpose(opened))
    except DataError:
        raise
    except Image.DecompressionBombError as error:
        raise DataError(expected(what, f"at most {MAX_PIXELS} pixels", error)) from error
    except (
        OSError,  # also Pillow's UnidentifiedImageError
        EOFError,
        SyntaxError,  # a broken PNG
        ValueError,
        IndexError,
        RuntimeError,  # an encrypted zip, or (NotImplementedError) an unknown compression
        struct.error,
        zipfile.BadZipFile,
        zlib.error,
    ) as error:
        raise DataError(expected(what, "a readable image", f"{error}")) from error
    return pixels(picture if image_size is None else square(picture, image_size))


def _plain(what: str, picture: Image.Image) -> Image.Image:
    """Any Pillow mode to L or RGB."""
    if picture.mode in ("L", "RGB"):
        picture.load()
        if "transparency" not in picture.info:
            return picture
    if picture.mode == "1":
        return picture.convert("L")
    if picture.mode.startswith("I"):  # 16-bit grey; its range is a convention of the file format
        wide = np.asarray(picture).astype(np.int64)
        if wide.min() < 0 or wide.max() > 65_535:
            found = f"values from {wide.min()} to {wide.max()}"
            raise DataError(expected(what, "grey values of 8 or 16 bits", found))
        return Image.fromarray(((wide + 128) // 257).astype(np.uint8))
    if picture.mode == "F":
        raise DataError(expected(what, "pixels of 8 or 16 bits", "floating point"))
    if picture.mode in ("LA", "La", "PA", "RGBA", "RGBa", "P") or "transparency" in picture.info:
        grey = picture.mode in ("LA", "La", "L")
        solid = Image.new("RGBA", picture.size, "white")
        solid.alpha_composite(picture.convert("RGBA"))
        return solid.convert("L" if grey else "RGB")
    return picture.convert("RGB")
