"""The parameters of an architecture: names, shapes, and which of them may be pruned.

One walk over the U-Net that the trainable model, the ticket's validation and the lowering all
have to agree with. A name is the path of the torch module, then ``weight``, ``bias`` or ``gain``.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from sparse_ddpm.ticket.config import UNetConfig


@dataclass(frozen=True, slots=True)
class Parameter:
    """One tensor: its shape, whether it may be pruned, whether it is weight-standardised."""

    name: str
    shape: tuple[int, ...]
    prunable: bool = False
    standardized: bool = False


def unet_parameters(config: UNetConfig) -> tuple[Parameter, ...]:
    """All parameters of the U-Net in the order of the forward pass.

    Prunable: every convolution and FiLM linear, except the first and the last convolution and the
    time MLP. Norms and biases are never pruned.
    """
    return tuple(_walk(config))


def _walk(config: UNetConfig) -> Iterator[Parameter]:
    widths = config.widths
    levels = len(config.dim_mults)
    last = levels - 1
    yield from _conv("init_conv", config.channels, config.dim, 7, prunable=False)
    yield from _linear("time.linear1", config.dim, config.time_dim, prunable=False)
    yield from _linear("time.linear2", config.time_dim, config.time_dim, prunable=False)
    for level in range(levels):
        here, after = widths[level], widths[level + 1]
        for block in ("block1", "block2"):
            yield from _resnet_block(config, f"down.{level}.{block}", here, here)
        linear = level not in config.full_attention
        yield from _attention(config, f"down.{level}.attn", here, out_norm=linear)
        if level < last:
            yield from _conv(f"down.{level}.down", 4 * here, after, 1)
        else:
            yield from _conv(f"down.{level}.down", here, after, 3)
    yield from _resnet_block(config, "mid.block1", widths[-1], widths[-1])
    yield from _attention(config, "mid.attn", widths[-1], out_norm=False)
    yield from _resnet_block(config, "mid.block2", widths[-1], widths[-1])
    for stage in range(levels):
        level = last - stage
        skip, here = widths[level], widths[level + 1]
        for block in ("block1", "block2"):
            yield from _resnet_block(config, f"up.{stage}.{block}", here + skip, here)
        linear = level not in config.full_attention
        yield from _attention(config, f"up.{stage}.attn", here, out_norm=linear)
        yield from _conv(f"up.{stage}.up", here, skip, 3)
    yield from _resnet_block(config, "final_block", 2 * config.dim, config.dim)
    yield from _conv("final_conv", config.dim, config.channels, 1, prunable=False)


def _conv(
    name: str, cin: int, cout: int, size: int, *, bias: bool = True, prunable: bool = True
) -> Iterator[Parameter]:
    yield Parameter(f"{name}.weight", (cout, cin, size, size), prunable)
    if bias:
        yield Parameter(f"{name}.bias", (cout,))


def _linear(name: str, inputs: int, outputs: int, *, prunable: bool = True) -> Iterator[Parameter]:
    yield Parameter(f"{name}.weight", (outputs, inputs), prunable)
    yield Parameter(f"{name}.bias", (outputs,))


def _resnet_block(config: UNetConfig, name: str, cin: int, cout: int) -> Iterator[Parameter]:
    standardized = config.weight_standardization != "none"
    yield from _linear(f"{name}.film", config.time_dim, 2 * cout)
    for index, inputs in ((1, cin), (2, cout)):
        yield Parameter(f"{name}.conv{index}.weight", (cout, inputs, 3, 3), True, standardized)
        yield Parameter(f"{name}.conv{index}.bias", (cout,))
        if config.block_norm == "rms":
            yield Parameter(f"{name}.norm{index}.gain", (cout,))
        else:
            yield Parameter(f"{name}.norm{index}.weight", (cout,))
            yield Parameter(f"{name}.norm{index}.bias", (cout,))
    if cin != cout:
        yield from _conv(f"{name}.shortcut", cin, cout, 1)


def _attention(config: UNetConfig, name: str, width: int, *, out_norm: bool) -> Iterator[Parameter]:
    if config.memory > 0:
        yield Parameter(f"{name}.memory", (2, config.heads, config.dim_head, config.memory))
    yield Parameter(f"{name}.norm.gain", (width,))
    yield from _conv(f"{name}.qkv", width, 3 * config.hidden, 1, bias=False)
    yield from _conv(f"{name}.out", config.hidden, width, 1)
    if out_norm:
        yield Parameter(f"{name}.out_norm.gain", (width,))
