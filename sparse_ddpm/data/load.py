"""From a data spec, ``mnist:DIR`` or the like, to images in memory."""

from __future__ import annotations

from pathlib import Path

from sparse_ddpm.data import cifar, folder, idx
from sparse_ddpm.data.download import CIFAR, MNIST, fetch
from sparse_ddpm.data.images import Images, convert
from sparse_ddpm.errors import ConfigError, DataError, expected

SPECS = ("mnist:DIR", "cifar10:PATH", "cifar100:PATH", "images:PATH")
SPLITS = ("train", "test")


def load_images(
    spec: str,
    *,
    image_size: int | None = None,
    channels: int | None = None,
    download: bool = False,
    split: str = "train",
) -> Images:
    """Load a whole data set: `Images` with uint8 ``[N, H, W, C]`` and, where known, labels.

    ``spec`` is one of

    * ``mnist:DIR``: the IDX files, with or without gzip;
    * ``cifar10:PATH``, ``cifar100:PATH``: the official binary archive, or the folder that it holds
      (CIFAR-100 gives its 100 fine labels);
    * ``images:PATH``: a folder or zip of images, searched recursively. Images that lie in one
      folder per class are labelled by the sorted names of these folders. There is one set of
      images, which ``split`` does not divide.

    ``image_size`` and ``channels`` (1 or 3) convert, see `sparse_ddpm.data.images.convert`; None
    keeps what the files hold. With ``download`` missing official files are fetched into ``DIR``
    or ``PATH`` first; nothing is ever downloaded otherwise.

    Raises `DataError` for a missing, wrong or damaged file, `ConfigError` for a setting that
    cannot be.
    """
    if image_size is not None and not (type(image_size) is int and 1 <= image_size <= 4_096):
        raise ConfigError(expected("image_size", "an integer from 1 to 4096", repr(image_size)))
    if channels not in (None, 1, 3):
        raise ConfigError(expected("channels", "1 or 3", repr(channels)))
    if split not in SPLITS:
        raise ConfigError(expected("split", "train or test", repr(split)))
    kind, colon, where = spec.partition(":")
    if not colon or not where or kind not in {known.partition(":")[0] for known in SPECS}:
        raise DataError(expected("data", " or ".join(SPECS), repr(spec)))
    path = Path(where).expanduser()
    if kind == "images":
        if download:
            raise ConfigError(expected("download", "mnist, cifar10 or cifar100", repr(spec)))
        return folder.load_folder(path, image_size, channels)
    if download:
        _fetch(kind, path)
    loaded = idx.load_mnist(path, split) if kind == "mnist" else cifar.load_cifar(path, kind, split)
    return Images(convert(loaded.images, image_size, channels), loaded.labels, loaded.name)


def _fetch(kind: str, path: Path) -> None:
    """Download what is missing; a file that is there under any of its names is left alone."""
    if kind == "mnist":
        for name, remote in MNIST.items():
            if not idx.present(path, name.removesuffix(".gz")):
                fetch(remote, path / name)
    elif not cifar.present(path, kind):
        named = path.name.endswith(".tar.gz")
        fetch(CIFAR[kind], path if named else path / cifar.LAYOUTS[kind].archive)
