from __future__ import annotations

import gzip
import hashlib
import io
import struct
import tarfile
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from sparse_ddpm.data import download, load_images
from sparse_ddpm.data.download import CIFAR, MNIST, Remote, fetch
from sparse_ddpm.errors import DataError


class Server:
    """Serves ``files`` on 127.0.0.1, less ``cut`` bytes each; remembers what was asked for."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.asked: list[str] = []
        self.cut = 0
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                name = self.path.lstrip("/")
                server.asked.append(name)
                if name not in server.files:
                    self.send_error(404)
                    return
                data = server.files[name]
                self.send_response(200)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data[: len(data) - server.cut])

            def log_message(self, *_: object) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}"


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    served = Server()
    thread = threading.Thread(target=served.http.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield served
    served.http.shutdown()
    thread.join()
    served.http.server_close()


def _md5(data: bytes) -> str:
    return hashlib.md5(data, usedforsecurity=False).hexdigest()


def _remote(server: Server, data: bytes, **changes: object) -> Remote:
    server.files["file"] = data
    settings = {"url": f"{server.url}/file", "md5": _md5(data), "limit": len(data), **changes}
    return Remote(**settings)  # type: ignore[arg-type]


def test_the_right_sum_leaves_just_the_file(tmp_path: Path, server: Server) -> None:
    data = bytes(range(256)) * 5_000
    fetch(_remote(server, data), tmp_path / "new" / "file.bin")
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["file.bin"]
    assert (tmp_path / "new" / "file.bin").read_bytes() == data


def test_the_sum_may_be_that_of_the_content(tmp_path: Path, server: Server) -> None:
    zipped = gzip.compress(b"content" * 100)
    fetch(
        _remote(server, zipped, md5=_md5(b"content" * 100), limit=700, unzipped=True),
        tmp_path / "f",
    )
    assert (tmp_path / "f").read_bytes() == zipped


@pytest.mark.parametrize(
    ("changes", "cut", "words"),
    [
        ({"md5": "0" * 32}, 0, "expected md5 sum 0{32}, got [0-9a-f]{32}"),
        ({"limit": 10}, 0, "at most 10 bytes"),
        ({"limit": 300, "unzipped": True}, 0, "at most 300 bytes of content"),
        ({"unzipped": True, "md5": "1" * 32}, 0, "md5 sum 1{32}"),
        ({}, 7, "bytes|IncompleteRead"),
        ({"url": "http://127.0.0.1:9/file"}, 0, "can be fetched"),
        ({"url": "/missing"}, 0, "can be fetched, got HTTP Error 404"),
    ],
)
def test_a_failed_download_leaves_nothing(
    tmp_path: Path, server: Server, changes: dict[str, object], cut: int, words: str
) -> None:
    data = gzip.compress(bytes(500) + bytes(range(256)))
    if changes.get("url") == "/missing":
        changes = {"url": f"{server.url}/missing"}
    remote = _remote(server, data, **{"limit": 10_000, **changes})
    server.cut = cut
    target = tmp_path / "file.gz"
    target.write_bytes(b"older")
    with pytest.raises(DataError, match=words):
        fetch(remote, target)
    assert target.read_bytes() == b"older"
    assert list(tmp_path.iterdir()) == [target]


def test_a_file_that_is_no_gzip(tmp_path: Path, server: Server) -> None:
    remote = _remote(server, b"<html>not found</html>", unzipped=True)
    with pytest.raises(DataError, match="Not a gzipped file"):
        fetch(remote, tmp_path / "file.gz")
    assert not list(tmp_path.iterdir())


def test_a_target_that_cannot_be_written(tmp_path: Path, server: Server) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(DataError, match="a place to write to"):
        fetch(_remote(server, b"x"), tmp_path / "file" / "inner")


def test_load_images_fetches_only_what_is_missing_and_only_when_asked(
    tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    contents = {
        "images": struct.pack(">4B3I", 0, 0, 8, 3, 2, 28, 28) + bytes(2 * 784),
        "labels": struct.pack(">4BI", 0, 0, 8, 1, 2) + bytes(2),
    }
    remotes = {}
    for name in MNIST:
        content = contents["images" if "images" in name else "labels"]
        server.files[name] = gzip.compress(content)
        remotes[name] = Remote(f"{server.url}/{name}", _md5(content), 10_000, unzipped=True)
    monkeypatch.setattr("sparse_ddpm.data.load.MNIST", remotes)
    folder = tmp_path / "mnist"
    with pytest.raises(DataError):
        load_images(f"mnist:{folder}")
    assert not folder.exists()
    assert not server.asked
    folder.mkdir()
    (folder / "t10k-labels.idx1-ubyte").write_bytes(contents["labels"])
    assert len(load_images(f"mnist:{folder}", download=True)) == 2
    assert server.asked == [name for name in MNIST if name != "t10k-labels-idx1-ubyte.gz"]
    assert len(load_images(f"mnist:{folder}", download=True, split="test")) == 2
    assert len(server.asked) == 3


@pytest.mark.parametrize("named", [False, True])
def test_cifar_is_fetched_into_the_folder_or_to_the_name(
    tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch, named: bool
) -> None:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as archive:
        for name in ("train.bin", "test.bin"):
            member = tarfile.TarInfo(f"cifar-100-binary/{name}")
            member.size = 3074
            archive.addfile(member, io.BytesIO(bytes(3074)))
    remote = _remote(server, out.getvalue())
    monkeypatch.setattr("sparse_ddpm.data.load.CIFAR", {"cifar100": remote})
    path = tmp_path / "c.tar.gz" if named else tmp_path
    for _ in range(2):
        assert len(load_images(f"cifar100:{path}", download=True)) == 1
    assert server.asked == ["file"]
    assert [p.name for p in tmp_path.iterdir()] == [
        "c.tar.gz" if named else "cifar-100-binary.tar.gz"
    ]


def test_the_official_addresses_are_https_with_sums() -> None:
    for remote in (*MNIST.values(), *CIFAR.values()):
        assert remote.url.startswith("https://")
        assert len(bytes.fromhex(remote.md5)) == 16


def test_the_sums_of_mnist_are_those_of_the_real_files(data_root: Path) -> None:
    for name, remote in MNIST.items():
        assert download._md5(data_root / "mnist" / name, remote) == remote.md5
