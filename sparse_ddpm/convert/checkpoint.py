"""A file with tensors: which kind it is, and which module knows it.

* A trainer's file of denoising-diffusion-pytorch, or of the paper's fork of it: a table with
  ``model`` (a diffusion: its buffers, and its network under ``model.``) and ``ema``.
* ``{state_dict, mask}``, or one of both, in any of the forms in `convert.masks`.
* A state dict alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from sparse_ddpm.convert.masks import Masks, split_masks, without_reparametrization
from sparse_ddpm.convert.options import Options
from sparse_ddpm.convert.read import read_file, tensors_of, without_prefix
from sparse_ddpm.errors import TicketError, expected
from sparse_ddpm.ticket import Ticket

PREFIXES = ("module.", "_orig_mod.", "ema_model.", "online_model.", "model.", "unet.")


@dataclass(frozen=True, slots=True)
class Source:
    """What a file says. ``tensors``: of the network, by their names there, and ``masks`` of some;
    ``buffers``: of the diffusion; ``version``: of the package that wrote it, if it says so."""

    tensors: Mapping[str, Tensor]
    masks: Masks
    buffers: Mapping[str, Tensor]
    version: str | None


def convert_file(path: Path, options: Options) -> Ticket:
    """The ticket that a file of tensors holds. Raises `TicketError` or `ConfigError`."""
    content = read_file(path)
    if content.get("format") == "sparse-ddpm-ticket":
        raise TicketError(expected(str(path), "a checkpoint", "a ticket already"))
    source = source_of(content, options)
    if any(name.startswith(("down_blocks.", "conv_in.")) for name in source.tensors):
        wanted = "the folder with config.json beside it"
        raise TicketError(expected(str(path), wanted, "the weights of a diffusers model alone"))
    from sparse_ddpm.convert.unet import convert_unet

    return convert_unet(source, options)


def source_of(content: Mapping[str, Any], options: Options) -> Source:
    """``content`` of a file, taken apart. Raises `TicketError`."""
    version = content.get("version")
    version = version if isinstance(version, str) else None
    if options.source_version is not None:
        if version is not None and version != options.source_version:
            raise TicketError(
                expected("--source-version", f"{version}, as the file says", options.source_version)
            )
        version = options.source_version
    if isinstance(content.get("model"), Mapping) and ("step" in content or "ema" in content):
        tensors = _chosen(content, options)
        tensors, masks = without_reparametrization(tensors)
    else:
        if options.raw:
            found = "a file with one set of weights"
            raise TicketError(expected("--raw", "a trainer's file, with an average", found))
        found_both = split_masks(content)
        if found_both is None:
            found_both = without_reparametrization(tensors_of("checkpoint", content))
        tensors, masks = found_both
    return _parts(tensors, masks, version)


def _chosen(content: Mapping[str, Any], options: Options) -> dict[str, Tensor]:
    """The average of a trainer's file or, asked for, the weights that were trained."""
    raw = tensors_of("model", content["model"])
    ema = content.get("ema")
    if options.raw:
        return raw
    if not isinstance(ema, Mapping):
        raise TicketError(expected("ema", "the average of the weights, or --raw", "none"))
    average = {n: t for n, t in ema.items() if isinstance(n, str) and n.startswith("ema_model.")}
    chosen = tensors_of("ema", average or ema)
    zeros, raw_zeros = _zeros(chosen), _zeros(raw)
    if raw_zeros > zeros + 0.01:
        options.tell(
            f"{zeros:.1%} of the average is zero, of the weights that were trained {raw_zeros:.1%}:"
            " the average was not masked. --raw converts the sparse weights."
        )
    return chosen


def _zeros(tensors: Mapping[str, Tensor]) -> float:
    """Part of the matrices and filters that is exactly zero."""
    large = [t for t in tensors.values() if t.ndim in (2, 4)]
    return sum(int((t == 0).sum()) for t in large) / max(1, sum(t.numel() for t in large))


def _parts(tensors: Mapping[str, Tensor], masks: Masks, version: str | None) -> Source:
    outer = ("module.", "_orig_mod.", "ema_model.", "online_model.")
    inside, outside = without_prefix(tensors, *outer), {}
    if "betas" in inside or "alphas_cumprod" in inside:
        # A diffusion around its network: what is not the network's is a buffer.
        outside = {n: t for n, t in inside.items() if not n.startswith("model.")}
        inside = {n: t for n, t in inside.items() if n.startswith("model.")}
    network = without_prefix(inside, *PREFIXES)
    names = dict(zip(inside, network, strict=True))
    whole = dict(zip(tensors, without_prefix(tensors, *outer), strict=True))
    kept = {names[whole[n]]: mask for n, mask in masks.items() if whole[n] in names}
    return Source(network, kept, outside, version)
