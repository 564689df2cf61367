from __future__ import annotations

import contextlib
import io
import struct
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sparse_ddpm.data import folder, load_images
from sparse_ddpm.errors import ConfigError, DataError


def _random(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def _save(path: Path, array: np.ndarray, **options: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path, **options)  # type: ignore[arg-type]


def _zip(path: Path, source: Path, compression: int = zipfile.ZIP_STORED) -> None:
    with zipfile.ZipFile(path, "w", compression) as archive:
        for file in sorted(source.rglob("*")):
            archive.write(file, file.relative_to(source))


@pytest.mark.parametrize("form", ["folder", "stored", "deflated"])
@pytest.mark.parametrize("top", ["", "a/b"])
def test_one_folder_per_class_gives_labels(tmp_path: Path, form: str, top: str) -> None:
    root = tmp_path / "pets"
    want = {}
    for i, name in enumerate(["dog/0.png", "cat/1.png", "cat/0.bmp", "eel/9.PNG"]):
        want[name] = _random(8, 8, 3, seed=i)
        _save(root / top / name, want[name])
    (root / "README.txt").write_text("not an image")
    (root / top / "cat" / "._0.png").write_bytes(b"what macOS leaves behind")
    path = root
    if form != "folder":
        path = tmp_path / "pets.zip"
        _zip(path, root, zipfile.ZIP_STORED if form == "stored" else zipfile.ZIP_DEFLATED)
    loaded = load_images(f"images:{path}")
    assert loaded.name == "pets"
    assert loaded.labels is not None
    assert loaded.labels.tolist() == [0, 0, 1, 2]
    order = ["cat/0.bmp", "cat/1.png", "dog/0.png", "eel/9.PNG"]
    assert np.array_equal(loaded.images, np.stack([want[name] for name in order]))


@pytest.mark.parametrize(
    "names",
    [
        ["0.png", "1.png"],
        ["a/0.png", "a/1.png"],
        ["a/0.png", "1.png"],
        ["train/a/0.png", "test/0.png"],
        ["train/a/0.png", "train/b/0.png", "test/a/0.png"],
    ],
)
def test_other_trees_have_no_labels(tmp_path: Path, names: list[str]) -> None:
    for name in names:
        _save(tmp_path / name, _random(3, 3))
    loaded = load_images(f"images:{tmp_path}")
    assert loaded.labels is None
    assert loaded.images.shape == (len(names), 3, 3, 1)


def test_every_file_format(tmp_path: Path) -> None:
    source = np.repeat(_random(4, 4, 3), 4, axis=0).repeat(4, axis=1)
    for suffix in folder.SUFFIXES:
        lossless = {"lossless": True} if suffix == ".webp" else {}
        if suffix == ".pbm":
            Image.fromarray(source).convert("1").save(tmp_path / f"x{suffix}")
        elif suffix == ".pgm":
            Image.fromarray(source).convert("L").save(tmp_path / f"x{suffix}")
        else:
            _save(tmp_path / f"x{suffix}", source, **lossless)
    loaded = load_images(f"images:{tmp_path}")
    assert loaded.images.shape == (len(folder.SUFFIXES), 16, 16, 3)
    exact = [
        s in (".bmp", ".png", ".ppm", ".tif", ".tiff", ".webp") for s in sorted(folder.SUFFIXES)
    ]
    same = [np.array_equal(image, source) for image in loaded.images]
    assert [s for s, e in zip(same, exact, strict=True) if e] == [True] * sum(exact)


def test_grey_stays_grey_until_a_colour_image_comes(tmp_path: Path) -> None:
    grey, colour = _random(4, 4), _random(4, 4, 3)
    _save(tmp_path / "0.png", grey)
    _save(tmp_path / "1.png", grey)
    assert load_images(f"images:{tmp_path}").images.shape == (2, 4, 4, 1)
    assert load_images(f"images:{tmp_path}", channels=3).images.shape == (2, 4, 4, 3)
    _save(tmp_path / "2.png", colour)
    mixed = load_images(f"images:{tmp_path}").images
    assert np.array_equal(mixed[1], np.repeat(grey[:, :, None], 3, axis=2))
    assert np.array_equal(mixed[2], colour)
    assert load_images(f"images:{tmp_path}", channels=1).images.shape == (3, 4, 4, 1)


def test_sizes_must_agree_unless_one_is_asked_for(tmp_path: Path) -> None:
    _save(tmp_path / "a.png", _random(8, 8))
    _save(tmp_path / "b.png", _random(6, 9))
    with pytest.raises(DataError, match=r"b\.png: image size: expected 8x8 as a\.png .*, got 9x6"):
        load_images(f"images:{tmp_path}")
    loaded = load_images(f"images:{tmp_path}", image_size=6)
    middle = np.asarray(Image.open(tmp_path / "b.png"))[:, 1:7]
    assert np.array_equal(loaded.images[1, :, :, 0], middle)


def test_16_bit_grey_palette_alpha_and_rotation(tmp_path: Path) -> None:
    wide = np.array([[0, 128, 129, 65_535]], dtype=np.uint16)
    _save(tmp_path / "0.png", wide)
    clear = np.array([[[10, 20, 30, 0], [10, 20, 30, 255]] * 2], dtype=np.uint8)
    _save(tmp_path / "1.png", clear)
    Image.fromarray(_random(1, 4, 3)).quantize(4).save(tmp_path / "2.png")
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    turned = _random(4, 1, 3)
    _save(tmp_path / "3.png", turned, exif=exif)
    images = load_images(f"images:{tmp_path}").images
    assert images[0, 0, :, 0].tolist() == [0, 0, 1, 255]
    assert images[1, 0, :2].tolist() == [[255, 255, 255], [10, 20, 30]]
    with Image.open(tmp_path / "2.png") as palette:
        assert np.array_equal(images[2], np.asarray(palette.convert("RGB")))
    assert np.array_equal(images[3], np.rot90(turned, -1))


def test_the_real_zip(data_root: Path) -> None:
    loaded = load_images(f"images:{data_root / 'cifar10' / 'cifar10-test-jpeg.zip'}")
    assert loaded.images.shape == (10_000, 32, 32, 3)
    assert loaded.labels is not None
    assert np.bincount(loaded.labels).tolist() == [1_000] * 10
    # CIFAR-10's published channel means, near enough after JPEG.
    mean = loaded.images.mean(axis=(0, 1, 2)) / 255
    assert mean == pytest.approx([0.4942, 0.4851, 0.4504], abs=2e-3)


def _png(width: int, height: int) -> bytes:
    """A small PNG file that claims a size."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    body = zlib.compress(bytes(1000))
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")
    )


def _bytes(array: np.ndarray, kind: str) -> bytes:
    out = io.BytesIO()
    Image.fromarray(array).save(out, kind)
    return out.getvalue()


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "readable image"),
        (b"no image at all", "readable image"),
        (_bytes(_random(9, 9), "PNG")[:-30], "readable image"),
        (_bytes(_random(9, 9), "PNG")[:20], "readable image"),
        (_bytes(_random(64, 64, 3), "JPEG")[:-400], "readable image"),
        (_png(10_001, 10_000), "at most 100000000 pixels, got 10001 x 10000"),
        (_png(2**31 - 1, 2**31 - 1), "at most 100000000 pixels"),
        (_bytes(_random(9, 9), "PCX"), "readable image"),
    ],
)
@pytest.mark.parametrize("zipped", [False, True])
def test_an_unreadable_image_is_named(
    tmp_path: Path, data: bytes, words: str, zipped: bool
) -> None:
    root = tmp_path / "in"
    _save(root / "a.png", _random(9, 9))
    (root / "b.png").write_bytes(data)
    path = root
    if zipped:
        path = tmp_path / "in.zip"
        _zip(path, root)
    with pytest.raises(DataError, match=rf"b\.png: expected .*{words}"):
        load_images(f"images:{path}")


def test_nothing_to_load(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such path"):
        load_images(f"images:{tmp_path / 'nowhere'}")
    with pytest.raises(DataError, match=r"at least one image \(.*png.*got none among 0 files"):
        load_images(f"images:{tmp_path}")
    (tmp_path / "notes.txt").write_text("words")
    with zipfile.ZipFile(tmp_path / "inner.zip", "w"):
        pass
    with pytest.raises(DataError, match=r"none among 2 files .give the path of the zip"):
        load_images(f"images:{tmp_path}")
    with pytest.raises(DataError, match="none among 0 files"):
        load_images(f"images:{tmp_path / 'inner.zip'}")
    with pytest.raises(DataError, match=r"notes\.txt: expected a folder or a whole zip"):
        load_images(f"images:{tmp_path / 'notes.txt'}")
    with pytest.raises(ConfigError, match="download"):
        load_images(f"images:{tmp_path}", download=True)


def test_a_zip_cut_or_changed(tmp_path: Path) -> None:
    for i in range(3):
        _save(tmp_path / "in" / f"{i}.png", _random(5, 5, seed=i))
    path = tmp_path / "in.zip"
    _zip(path, tmp_path / "in", zipfile.ZIP_DEFLATED)
    whole = path.read_bytes()
    good = load_images(f"images:{path}").images
    for length in range(0, len(whole), 23):
        path.write_bytes(whole[:length])
        with pytest.raises(DataError, match=r"in\.zip"):
            load_images(f"images:{path}")
    rng = np.random.default_rng(0)
    for at in range(0, len(whole), 3):
        path.write_bytes(
            whole[:at] + bytes([whole[at] ^ int(rng.integers(1, 256))]) + whole[at + 1 :]
        )
        with contextlib.suppress(DataError):
            # A name in the directory may have changed so that fewer files count as images.
            assert load_images(f"images:{path}").images.shape[1:] == good.shape[1:]


def test_a_file_of_absurd_size_in_a_zip_is_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folder, "MAX_FILE", 1_000)
    with zipfile.ZipFile(tmp_path / "x.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("bomb.png", bytes(10_000))
    with pytest.raises(DataError, match=r"bomb\.png: expected at most 1000 bytes, got 10000"):
        load_images(f"images:{tmp_path / 'x.zip'}")
    (tmp_path / "bomb.png").write_bytes(bytes(10_000))
    with pytest.raises(DataError, match=r"bomb\.png: expected at most 1000 bytes, got 10000"):
        load_images(f"images:{tmp_path}")
