from __future__ import annotations

import gzip
import struct
from pathlib import Path

import numpy as np
import pytest

from sparse_ddpm.data import load_images
from sparse_ddpm.errors import DataError

IMAGES, LABELS = "train-images-idx3-ubyte", "train-labels-idx1-ubyte"


def _idx(array: np.ndarray) -> bytes:
    header = struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape)
    return header + array.astype(np.uint8).tobytes()


def _write(folder: Path, n: int = 7, prefix: str = "train") -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(1)
    pixels = rng.integers(0, 256, (n, 28, 28))
    labels = rng.integers(0, 10, n)
    (folder / f"{prefix}-images-idx3-ubyte").write_bytes(_idx(pixels))
    (folder / f"{prefix}-labels-idx1-ubyte").write_bytes(_idx(labels))
    return pixels, labels


@pytest.mark.parametrize("dotted", [False, True])
@pytest.mark.parametrize("zipped", [False, True])
def test_every_usual_name_is_found(tmp_path: Path, dotted: bool, zipped: bool) -> None:
    pixels, labels = _write(tmp_path)
    for name in (IMAGES, LABELS):
        data = (tmp_path / name).read_bytes()
        (tmp_path / name).unlink()
        target = name.replace("-idx", ".idx") if dotted else name
        if zipped:
            (tmp_path / f"{target}.gz").write_bytes(gzip.compress(data, 1))
        else:
            (tmp_path / target).write_bytes(data)
    loaded = load_images(f"mnist:{tmp_path}")
    assert loaded.name == "mnist"
    assert loaded.labels is not None
    assert loaded.images.dtype == np.uint8
    assert loaded.labels.dtype == np.int64
    assert np.array_equal(loaded.images[..., 0], pixels)
    assert np.array_equal(loaded.labels, labels)


def test_splits_sizes_and_channels(tmp_path: Path) -> None:
    _write(tmp_path, 7)
    _write(tmp_path, 1, "t10k")
    assert load_images(f"mnist:{tmp_path}", image_size=16).images.shape == (7, 16, 16, 1)
    test = load_images(f"mnist:{tmp_path}", split="test", image_size=32, channels=3)
    assert test.images.shape == (1, 32, 32, 3)


def test_the_real_files(data_root: Path) -> None:
    train = load_images(f"mnist:{data_root / 'mnist'}")
    test = load_images(f"mnist:{data_root / 'mnist'}", split="test", image_size=16)
    assert train.images.shape == (60_000, 28, 28, 1)
    assert test.images.shape == (10_000, 16, 16, 1)
    assert train.labels is not None
    assert test.labels is not None
    # Counts of each digit, as published with the data set.
    digits = np.bincount(train.labels).tolist()
    assert digits == [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    assert test.labels[:5].tolist() == [7, 2, 1, 0, 4]
    assert train.images.mean() == pytest.approx(33.318, abs=1e-3)


_PIXELS = np.zeros((3, 28, 28))


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "IDX file .* got nothing"),
        (b"\0\0", "IDX file .* got 0x0000"),
        (b"\x89PNG\r\n", "magic number 0x00000803.* got 0x89504e47"),
        (b"\0\0\x0d\x03" + bytes(100), "type code: expected 0x08 .* got 0x0d"),
        (_idx(np.zeros(10)), r"dimensions: expected 3 \(images\), got 1"),
        (b"\0\0\x08\x03\0\0\0", "header: expected 16 bytes, got 7"),
        (_idx(_PIXELS)[:-1], "3 x 28 x 28 = 2352 bytes of data.* got .*2351"),
        (_idx(_PIXELS)[:16], "2352 bytes of data.* got .*0"),
        (_idx(_PIXELS) + b"\0", "2352 bytes of data.* got more than 2352"),
        (struct.pack(">4B3I", 0, 0, 8, 3, *[2**32 - 1] * 3), "header that claims 4294967295 x"),
        (
            struct.pack(">4B3I", 0, 0, 8, 3, 10**6, 28, 28) + bytes(99),
            "784000000 bytes.* got at most",
        ),
        (_idx(np.zeros((0, 28, 28))), "header that claims 0 x 28 x 28"),
        (_idx(np.zeros((3, 27, 28))), "image size: expected 28 x 28, got 27 x 28"),
        (_idx(np.zeros((4, 28, 28))), f"{LABELS}: expected 4 labels.* got 3"),
    ],
)
@pytest.mark.parametrize("zipped", [False, True])
def test_a_damaged_file_names_itself(tmp_path: Path, data: bytes, words: str, zipped: bool) -> None:
    _write(tmp_path, 3)
    (tmp_path / IMAGES).unlink()
    name = f"{IMAGES}.gz" if zipped else IMAGES
    (tmp_path / name).write_bytes(gzip.compress(data) if zipped else data)
    with pytest.raises(DataError, match=words) as caught:
        load_images(f"mnist:{tmp_path}")
    assert IMAGES in str(caught.value)


def test_images_and_labels_exchanged(tmp_path: Path) -> None:
    _write(tmp_path)
    (tmp_path / LABELS).write_bytes((tmp_path / IMAGES).read_bytes())
    with pytest.raises(DataError, match=rf"{LABELS}: IDX dimensions: expected 1 \(labels\), got 3"):
        load_images(f"mnist:{tmp_path}")


def test_a_label_that_is_no_digit(tmp_path: Path) -> None:
    _write(tmp_path, 2)
    (tmp_path / LABELS).write_bytes(_idx(np.array([9, 10])))
    with pytest.raises(DataError, match=f"{LABELS}: labels: expected digits 0 to 9, got 10"):
        load_images(f"mnist:{tmp_path}")


def test_gzip_cut_or_changed_anywhere(tmp_path: Path) -> None:
    _write(tmp_path, 4)
    whole = gzip.compress((tmp_path / IMAGES).read_bytes(), 1)
    (tmp_path / IMAGES).unlink()
    target = tmp_path / f"{IMAGES}.gz"
    for length in (*range(0, len(whole), 97), len(whole) - 8, len(whole) - 1):
        target.write_bytes(whole[:length])
        with pytest.raises(DataError, match=IMAGES):
            load_images(f"mnist:{tmp_path}")
    for at in range(len(whole) // 2, len(whole), 211):
        target.write_bytes(whole[:at] + bytes([whole[at] ^ 0x10]) + whole[at + 1 :])
        with pytest.raises(DataError, match=IMAGES):
            load_images(f"mnist:{tmp_path}")


def test_a_gzip_bomb_is_not_unpacked(tmp_path: Path) -> None:
    _write(tmp_path, 1)
    (tmp_path / IMAGES).write_bytes(gzip.compress(_idx(np.zeros((1, 28, 28))) + bytes(10**8), 1))
    with pytest.raises(DataError, match="got more than 784"):
        load_images(f"mnist:{tmp_path}")


def test_a_missing_file_lists_the_names_looked_for(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=rf"{IMAGES}\.gz or {IMAGES} or .*, got none of them"):
        load_images(f"mnist:{tmp_path}")
    with pytest.raises(DataError, match="no such folder"):
        load_images(f"mnist:{tmp_path / 'nowhere'}")
    _write(tmp_path)
    with pytest.raises(DataError, match="t10k-images"):
        load_images(f"mnist:{tmp_path}", split="test")
