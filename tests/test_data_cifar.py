from __future__ import annotations

import contextlib
import io
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pytest

from sparse_ddpm.data import load_images
from sparse_ddpm.errors import DataError

Files = dict[str, bytes]


def _records(n: int, classes: tuple[int, ...], seed: int) -> tuple[bytes, np.ndarray, np.ndarray]:
    """File content, images ``[n, 32, 32, 3]``, last labels ``[n]``, built record by record."""
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (n, 32, 32, 3), dtype=np.uint8)
    labels = np.stack([rng.integers(0, c, n) for c in classes], axis=1)
    content = b"".join(
        bytes(label.tolist()) + b"".join(image[:, :, c].tobytes() for c in range(3))
        for label, image in zip(labels, images, strict=True)
    )
    return content, images, labels[:, -1]


def _cifar10(n: int = 4) -> tuple[Files, np.ndarray, np.ndarray]:
    parts = [_records(n, (10,), i) for i in range(5)]
    files = {f"data_batch_{i + 1}.bin": part[0] for i, part in enumerate(parts)}
    files["test_batch.bin"] = _records(n, (10,), 9)[0]
    files["batches.meta.txt"] = b"airplane\n"
    return files, np.concatenate([p[1] for p in parts]), np.concatenate([p[2] for p in parts])


def _tar(path: Path, files: Files, folder: str, mode: str = "w:gz") -> None:
    with tarfile.open(path, mode) as archive:  # type: ignore[call-overload]
        for name, data in files.items():
            member = tarfile.TarInfo(f"{folder}/{name}")
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))


def _unpacked(path: Path, files: Files) -> None:
    path.mkdir(parents=True, exist_ok=True)
    for name, data in files.items():
        (path / name).write_bytes(data)


@pytest.mark.parametrize("form", ["archive", "tar", "in folder", "unpacked", "unpacked in folder"])
def test_cifar10_in_every_form(tmp_path: Path, form: str) -> None:
    files, images, labels = _cifar10()
    path = tmp_path
    if form == "archive":
        path = tmp_path / "any name.tgz"
        _tar(path, files, "cifar-10-batches-bin")
    elif form == "tar":
        path = tmp_path / "cifar.tar"
        _tar(path, files, "cifar-10-batches-bin", "w")
    elif form == "in folder":
        _tar(tmp_path / "cifar-10-binary.tar.gz", files, "cifar-10-batches-bin")
    else:
        inner = tmp_path / "cifar-10-batches-bin"
        _unpacked(inner, files)
        path = inner if form == "unpacked" else tmp_path
    loaded = load_images(f"cifar10:{path}")
    assert loaded.name == "cifar10"
    assert loaded.labels is not None
    assert np.array_equal(loaded.images, images)
    assert np.array_equal(loaded.labels, labels)
    assert load_images(f"cifar10:{path}", split="test").images.shape == (4, 32, 32, 3)


def test_cifar100_gives_fine_labels(tmp_path: Path) -> None:
    content, images, labels = _records(7, (20, 100), 3)
    files = {"train.bin": content, "test.bin": _records(1, (20, 100), 4)[0]}
    _tar(tmp_path / "cifar-100-binary.tar.gz", files, "cifar-100-binary")
    loaded = load_images(f"cifar100:{tmp_path}")
    assert loaded.labels is not None
    assert np.array_equal(loaded.images, images)
    assert np.array_equal(loaded.labels, labels)
    test = load_images(f"cifar100:{tmp_path}", split="test", image_size=16, channels=1)
    assert test.images.shape == (1, 16, 16, 1)


class _Trap:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return pytest.fail, ("a pickle was opened",)


@pytest.mark.parametrize("kind", ["cifar10", "cifar100"])
@pytest.mark.parametrize("form", ["archive", "unpacked", "folder with archive"])
def test_the_pickle_archive_is_refused_unopened(tmp_path: Path, kind: str, form: str) -> None:
    trap = pickle.dumps(_Trap())
    names = ("data_batch_1", "test_batch") if kind == "cifar10" else ("train", "test", "meta")
    digits = kind.removeprefix("cifar")
    python = f"cifar-{digits}-python.tar.gz"
    path = tmp_path
    if form == "unpacked":
        _unpacked(
            path / f"cifar-{digits}-{'batches-py' if digits == '10' else 'python'}",
            dict.fromkeys(names, trap),
        )
    else:
        _tar(path / python, dict.fromkeys(names, trap), "x")
        path = path / python if form == "archive" else path
    with pytest.raises(DataError, match=rf"cifar-{digits}-binary\.tar\.gz .*never opened"):
        load_images(f"{kind}:{path}")


def test_damaged_files_name_themselves(tmp_path: Path) -> None:
    files, _, _ = _cifar10()
    for name, data, words in (
        ("data_batch_2.bin", files["data_batch_2.bin"][:-1], "records of 3073 bytes, got 12291"),
        ("data_batch_3.bin", files["data_batch_3.bin"][:3073], "4 records, as in .*, got 1"),
        ("data_batch_4.bin", b"", "records of 3073 bytes, got 0"),
        (
            "data_batch_5.bin",
            b"\x0a" + files["data_batch_5.bin"][1:],
            "labels: expected 0 to 9, got 10",
        ),
    ):
        folder = tmp_path / name
        _unpacked(folder, {**files, name: data})
        with pytest.raises(DataError, match=f"{name}: .*{words}"):
            load_images(f"cifar10:{folder}")
        archive = tmp_path / f"{name}.tar.gz"
        _tar(archive, {**files, name: data}, "cifar-10-batches-bin")
        with pytest.raises(DataError, match=f"{name}: .*{words}"):
            load_images(f"cifar10:{archive}")


def test_missing_files_are_named(tmp_path: Path) -> None:
    files, _, _ = _cifar10()
    del files["data_batch_3.bin"]
    _unpacked(tmp_path / "a", files)
    with pytest.raises(DataError, match=r"got no data_batch_3\.bin"):
        load_images(f"cifar10:{tmp_path / 'a'}")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"cifar-100-binary\.tar\.gz, got none of them"):
        load_images(f"cifar100:{tmp_path / 'empty'}")
    with pytest.raises(DataError, match=r"data_batch_1\.bin.* got no such path"):
        load_images(f"cifar10:{tmp_path / 'nowhere'}")


@pytest.mark.parametrize("mode", ["w:gz", "w"])
def test_an_archive_cut_anywhere(tmp_path: Path, mode: str) -> None:
    files, _, _ = _cifar10(1)
    path = tmp_path / "cifar-10-binary.tar.gz"
    _tar(path, files, "cifar-10-batches-bin", mode)
    whole = path.read_bytes()
    end = len(whole) if mode == "w:gz" else 5 * (512 + 7 * 512) - 512
    for length in (*range(0, end, end // 40), end - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(DataError, match="cifar-10-binary"):
            load_images(f"cifar10:{path}")


def test_a_changed_archive_never_ends_in_another_error(tmp_path: Path) -> None:
    files, images, _ = _cifar10(1)
    path = tmp_path / "cifar.tar"
    _tar(path, files, "cifar-10-batches-bin", "w")
    whole = path.read_bytes()
    rng = np.random.default_rng(0)
    for at in (*range(0, 512, 3), *rng.integers(0, len(whole), 100).tolist()):
        path.write_bytes(
            whole[:at] + bytes([whole[at] ^ int(rng.integers(1, 256))]) + whole[at + 1 :]
        )
        with contextlib.suppress(DataError):
            assert load_images(f"cifar10:{path}").images.shape == images.shape


def test_a_member_of_absurd_size_is_not_read(tmp_path: Path) -> None:
    member = tarfile.TarInfo("cifar-10-batches-bin/data_batch_1.bin")
    member.size = 2**40
    path = tmp_path / "cifar.tar"
    path.write_bytes(member.tobuf() + bytes(10_240))
    with pytest.raises(
        DataError, match=r"data_batch_1\.bin: expected at most .* got 1099511627776"
    ):
        load_images(f"cifar10:{path}")
