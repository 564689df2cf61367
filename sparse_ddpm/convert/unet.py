"""The U-Net of denoising-diffusion-pytorch, and of the paper's fork of it, from its tensors.

What its versions are, and what becomes of them:

=============  ====================================================================================
to 0.31        halve by a strided convolution: refused
0.32 to 1.6    the paper's U-Net, weights standardised over pruned zeros too; the fork is of 1.4
1.7            the norms around attention divide by the root of the mean square; weights are not
               standardised any more (from 1.7.2), nor is linear attention a mean (from 1.7.4)
1.8            softmax attention at the innermost level, or at any
1.9 to 1.11    learned memory beside the keys and values of attention, and so heads that are known
2.0 on         the norms of blocks divide by the root of the mean square, too
=============  ====================================================================================

The names of tensors tell them apart, but for those below 1.8: there the version has to be known.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from sparse_ddpm.convert.masks import Masks, masks_of
from sparse_ddpm.convert.names import our_name
from sparse_ddpm.convert.options import Options
from sparse_ddpm.convert.process import diffusion_of
from sparse_ddpm.convert.read import floats
from sparse_ddpm.errors import TicketError, expected
from sparse_ddpm.ticket import Provenance, Ticket, UNetConfig, unet_parameters

if TYPE_CHECKING:
    from sparse_ddpm.convert.checkpoint import Source

GROUPS = 8
HEADS = 4
HIDDEN = 128
"""Theirs where nobody says otherwise: 8 groups, 4 heads of 32."""


def convert_unet(source: Source, options: Options) -> Ticket:
    """The ticket of a U-Net's tensors. Raises `TicketError` or `ConfigError` with the reason."""
    found = _Found.of(source)
    architecture = _architecture(found, source, options)
    parameters = unet_parameters(architecture)
    weights: dict[str, NDArray[np.float32]] = {}
    for parameter in parameters:
        name, tensor = found.tensor(parameter.name, f"a tensor {list(parameter.shape)}")
        if parameter.name.endswith(".gain") and tensor.ndim == 4:
            tensor = tensor.flatten()
        if parameter.name.endswith(".memory") and not _linear(found, parameter.name):
            tensor = tensor.mT  # there of softmax attention [2, heads, M, dim_head]
        if tuple(tensor.shape) != parameter.shape:
            raise TicketError(expected(name, f"shape {list(parameter.shape)}", list(tensor.shape)))
        weights[parameter.name] = floats(name, tensor).numpy()
    known = {parameter.name for parameter in parameters}
    for ours, theirs in found.names.items():
        if ours not in known:
            raise TicketError(expected(theirs, "no such tensor in this U-Net", "one"))
    ticket = Ticket(
        architecture=architecture,
        diffusion=diffusion_of(source.buffers, options),
        provenance=Provenance(),
        weights=weights,
        masks=masks_of(weights, found.masks, parameters),
    )
    provenance = Provenance(rewinding="none", allocation="imported", sparsity=ticket.sparsity)
    return dataclasses.replace(ticket, provenance=provenance)


@dataclasses.dataclass(frozen=True, slots=True)
class _Found:
    """Tensors and masks by our names, and the names that they have in the source."""

    tensors: Mapping[str, Tensor]
    masks: Masks
    names: Mapping[str, str]

    @classmethod
    def of(cls, source: Source) -> _Found:
        names: dict[str, str] = {}
        for theirs in source.tensors:
            ours = our_name(theirs)
            if ours is None:
                wanted = "a tensor of a U-Net of denoising-diffusion-pytorch"
                raise TicketError(expected(theirs, wanted, _why(theirs)))
            if ours in names:
                raise TicketError(expected(theirs, f"either it or {names[ours]}", "both"))
            names[ours] = theirs
        tensors = {ours: source.tensors[theirs] for ours, theirs in names.items()}
        masks = {o: source.masks[theirs] for o, theirs in names.items() if theirs in source.masks}
        return cls(tensors, masks, names)

    def tensor(self, name: str, wanted: str) -> tuple[str, Tensor]:
        """The tensor that we call ``name``, and what it is called."""
        if name not in self.tensors:
            raise TicketError(expected(name, f"{wanted} (our name of it)", "none"))
        return self.names[name], self.tensors[name]

    def shape(self, name: str, axes: int) -> tuple[str, tuple[int, ...]]:
        theirs, tensor = self.tensor(name, f"a tensor of {axes} axes")
        if tensor.ndim != axes:
            raise TicketError(expected(theirs, f"{axes} axes", list(tensor.shape)))
        return theirs, tuple(tensor.shape)


def _why(name: str) -> str:
    if name == "time_mlp.0.weights":
        return "learned or random frequencies of time"
    if re.search(r"\.norm\.b$", name):
        return "a norm with a bias, as before version 0.18"
    return "another"


def _architecture(found: _Found, source: Source, options: Options) -> UNetConfig:
    dim, channels = _image(found)
    if options.image_size is None:
        wanted = "--image-size N (a U-Net's weights fit images of any size)"
        raise TicketError(expected("image size", wanted, "none"))
    levels = {name.split(".")[1] for name in found.names if name.startswith("down.")}
    mults = tuple(_mult(found, f"down.{level}.down.weight", dim) for level in range(len(levels)))
    memory = _memory(found)
    heads, dim_head = _heads(found, options, memory)
    return UNetConfig(
        dim=dim,
        dim_mults=mults,
        channels=channels,
        image_size=options.image_size,
        groups=GROUPS if options.groups is None else options.groups,
        heads=heads,
        dim_head=dim_head,
        memory=memory[2],
        **_variant(found, source, len(mults)),
    )


def _image(found: _Found) -> tuple[int, int]:
    """``dim``, and the channels of an image."""
    first, (dim, inputs, *_) = found.shape("init_conv.weight", 4)
    last, (outputs, *_) = found.shape("final_conv.weight", 4)
    if inputs == 2 * outputs:
        wanted = f"{outputs} channels, those of an image"
        raise TicketError(expected(first, wanted, f"{inputs}: self-conditioning"))
    if outputs == 2 * inputs:
        wanted = f"{inputs} channels, those of an image"
        raise TicketError(expected(last, wanted, f"{outputs}: a learned variance"))
    name, shape = found.shape("time.linear1.weight", 2)
    if shape != (4 * dim, dim):
        wanted = f"shape {[4 * dim, dim]}, as with init_dim equal to dim"
        raise TicketError(expected(name, wanted, list(shape)))
    return dim, outputs


def _mult(found: _Found, name: str, dim: int) -> int:
    theirs, (after, _, *sides) = found.shape(name, 4)
    if sides == [4, 4]:
        wanted = "space to depth and a 1x1 convolution, as from version 0.32 on"
        raise TicketError(expected(theirs, wanted, "a 4x4 convolution of stride 2"))
    if after % dim:
        raise TicketError(expected(theirs, f"a multiple of dim = {dim} channels", after))
    return after // dim


def _linear(found: _Found, name: str) -> bool:
    """Whether the attention, one of whose tensors is ``name``, is linear."""
    return f"{name.rpartition('.')[0]}.out_norm.gain" in found.names


def _memory(found: _Found) -> tuple[int, int, int]:
    """Heads, channels of each and length of the memory of attention; zeros where there is none.

    Whether all are alike their shapes will tell.
    """
    if "mid.attn.memory" not in found.names:
        return 0, 0, 0
    _, (_, heads, length, dim_head) = found.shape("mid.attn.memory", 4)
    return heads, dim_head, length


def _heads(found: _Found, options: Options, memory: tuple[int, int, int]) -> tuple[int, int]:
    """Heads of attention, and channels of each."""
    if memory[0] > 0:
        if options.heads not in (None, memory[0]):
            raise TicketError(
                expected("--heads", f"{memory[0]}, as the memory says", options.heads)
            )
        return memory[0], memory[1]
    _, (rows, *_) = found.shape("mid.attn.qkv.weight", 4)
    hidden = rows // 3
    heads = HEADS if options.heads is None and hidden == HIDDEN else options.heads
    if heads is None:
        wanted = f"--heads N (they have {hidden} channels together; the weights say no more)"
        raise TicketError(expected("heads", wanted, "none"))
    if heads < 1 or hidden % heads:
        raise TicketError(expected("heads", f"a divisor of {hidden}", heads))
    return heads, hidden // heads


def _variant(found: _Found, source: Source, levels: int) -> dict[str, Any]:
    """What the versions changed, as fields of `UNetConfig`."""
    name, _ = found.tensor("mid.attn.qkv.weight", "a weight")
    if ".fn." not in name:
        linear = [f"down.{level}.attn.out_norm.gain" in found.names for level in range(levels)]
        return {
            "weight_standardization": "none",
            "block_norm": "rms" if "mid.block1.norm1.gain" in found.names else "group",
            "attention_norm": "rms",
            "attention_values": "sum",
            "full_attention": tuple(level for level in range(levels) if not linear[level]),
        }
    version = _version(source)
    if version == (1, 7, 1):
        wanted = "another than 1.7.1, where weights are divided by max(variance, eps)"
        raise TicketError(expected("version", wanted, "1.7.1"))
    return {
        "weight_standardization": "full" if version < (1, 7, 2) else "none",
        "attention_norm": "layer" if version < (1, 7) else "rms",
        "attention_values": "mean" if version < (1, 7, 4) else "sum",
    }


def _version(source: Source) -> tuple[int, ...]:
    """That of the source; 1.4 for any before 1.5, which alone have ``p2_loss_weight``."""
    if source.version is None:
        if "p2_loss_weight" in source.buffers:
            return (1, 4)
        wanted = "--source-version (of denoising-diffusion-pytorch: 1.6 and 1.7 differ in no name)"
        raise TicketError(expected("version", wanted, "none"))
    if not re.fullmatch(r"\d{1,4}(\.\d{1,4}){1,3}", source.version):
        raise TicketError(expected("version", "numbers and dots", repr(source.version[:40])))
    return tuple(int(part) for part in source.version.split("."))
