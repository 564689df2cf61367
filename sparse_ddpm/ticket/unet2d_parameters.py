"""The parameters of diffusers' U-Net: its own names, so that a state dict is one of ours.

Only the shape of an attention's four matrices is another: they are 1x1 convolutions here.
"""

from __future__ import annotations

from collections.abc import Iterator

from sparse_ddpm.ticket.parameters import Parameter
from sparse_ddpm.ticket.unet2d_config import UNet2DConfig


def unet2d_parameters(config: UNet2DConfig) -> tuple[Parameter, ...]:
    """All parameters in the order of the forward pass.

    Prunable: every convolution, an attention's four and the blocks' time maps, except the first
    and the last convolution and the time MLP. Norms and biases are never pruned.
    """
    return tuple(_Walk(config).all())


class _Walk:
    def __init__(self, config: UNet2DConfig) -> None:
        self.config = config

    def all(self) -> Iterator[Parameter]:
        config, widths = self.config, self.config.block_out_channels
        first = widths[0]
        yield from _conv("conv_in", config.channels, first, 3, prunable=False)
        yield from _linear("time_embedding.linear_1", first, config.time_dim, prunable=False)
        yield from _linear(
            "time_embedding.linear_2", config.time_dim, config.time_dim, prunable=False
        )
        skips = [first]
        here = first
        for level, width in enumerate(widths):
            name, kind = f"down_blocks.{level}", config.down_block_types[level]
            for layer in range(config.layers_per_block):
                yield from self._layer(name, layer, kind, here, width)
                here = width
                skips.append(width)
            if config.down(level) == "conv":
                yield from _conv(f"{name}.downsamplers.0.conv", width, width, 3)
            elif config.down(level) == "resnet":
                yield from self._resnet(f"{name}.downsamplers.0", width, width)
            if config.down(level) != "none":
                skips.append(width)
        if config.mid_block:
            yield from self._resnet("mid_block.resnets.0", here, here)
            if config.add_attention:
                normed = config.attn_norm_num_groups > 0
                yield from self._attention("mid_block.attentions.0", here, normed=normed)
            yield from self._resnet("mid_block.resnets.1", here, here)
        for stage, width in enumerate(reversed(widths)):
            name, kind = f"up_blocks.{stage}", config.up_block_types[stage]
            for layer in range(config.layers_per_block + 1):
                yield from self._layer(name, layer, kind, here + skips.pop(), width)
                here = width
            if config.up(stage) == "conv":
                yield from _conv(f"{name}.upsamplers.0.conv", width, width, 3)
            elif config.up(stage) == "resnet":
                yield from self._resnet(f"{name}.upsamplers.0", width, width)
        yield from _norm("conv_norm_out", first)
        yield from _conv("conv_out", first, config.channels, 3, prunable=False)

    def _layer(self, name: str, layer: int, kind: str, cin: int, cout: int) -> Iterator[Parameter]:
        yield from self._resnet(f"{name}.resnets.{layer}", cin, cout)
        if kind.startswith("Attn"):
            yield from self._attention(f"{name}.attentions.{layer}", cout, normed=True)

    def _resnet(self, name: str, cin: int, cout: int) -> Iterator[Parameter]:
        doubled = 2 if self.config.resnet_time_scale_shift == "scale_shift" else 1
        yield from _norm(f"{name}.norm1", cin)
        yield from _conv(f"{name}.conv1", cin, cout, 3)
        yield from _linear(f"{name}.time_emb_proj", self.config.time_dim, doubled * cout)
        yield from _norm(f"{name}.norm2", cout)
        yield from _conv(f"{name}.conv2", cout, cout, 3)
        if cin != cout:
            yield from _conv(f"{name}.conv_shortcut", cin, cout, 1)

    def _attention(self, name: str, width: int, *, normed: bool) -> Iterator[Parameter]:
        heads, dim = self.config.heads(width)
        if normed:
            yield from _norm(f"{name}.group_norm", width)
        for part in ("to_q", "to_k", "to_v"):
            yield from _conv(f"{name}.{part}", width, heads * dim, 1)
        yield from _conv(f"{name}.to_out.0", heads * dim, width, 1)


def _norm(name: str, width: int) -> Iterator[Parameter]:
    yield Parameter(f"{name}.weight", (width,))
    yield Parameter(f"{name}.bias", (width,))


def _conv(
    name: str, cin: int, cout: int, size: int, *, prunable: bool = True
) -> Iterator[Parameter]:
    yield Parameter(f"{name}.weight", (cout, cin, size, size), prunable)
    yield Parameter(f"{name}.bias", (cout,))


def _linear(name: str, inputs: int, outputs: int, *, prunable: bool = True) -> Iterator[Parameter]:
    yield Parameter(f"{name}.weight", (outputs, inputs), prunable)
    yield Parameter(f"{name}.bias", (outputs,))
