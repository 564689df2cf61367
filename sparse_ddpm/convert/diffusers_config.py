"""The ``config.json`` of a ``UNet2DModel`` as an architecture of ours."""

from __future__ import annotations

import json
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from sparse_ddpm.convert.options import Options
from sparse_ddpm.errors import TicketError, expected
from sparse_ddpm.ticket import UNet2DConfig

Table = Mapping[str, Any]

DEFAULTS: Table = MappingProxyType(
    {
        "sample_size": None,
        "in_channels": 3,
        "out_channels": 3,
        "center_input_sample": False,
        "time_embedding_type": "positional",
        "time_embedding_dim": None,
        "freq_shift": 0,
        "flip_sin_to_cos": True,
        "down_block_types": ["DownBlock2D", *["AttnDownBlock2D"] * 3],
        "mid_block_type": "UNetMidBlock2D",
        "up_block_types": [*["AttnUpBlock2D"] * 3, "UpBlock2D"],
        "block_out_channels": [224, 448, 672, 896],
        "layers_per_block": 2,
        "mid_block_scale_factor": 1,
        "downsample_padding": 1,
        "downsample_type": "conv",
        "upsample_type": "conv",
        "dropout": 0.0,
        "act_fn": "silu",
        "attention_head_dim": 8,
        "norm_num_groups": 32,
        "attn_norm_num_groups": None,
        "norm_eps": 1e-5,
        "resnet_time_scale_shift": "default",
        "add_attention": True,
        "class_embed_type": None,
        "num_class_embeds": None,
        "num_train_timesteps": None,
    }
)
"""What a field is where the file lacks it."""

ONLY: Mapping[str, tuple[object, ...]] = MappingProxyType(
    {
        "center_input_sample": (False,),
        "time_embedding_type": ("positional",),
        "mid_block_type": ("UNetMidBlock2D", None),
        "act_fn": ("silu", "swish"),
        "class_embed_type": (None,),
        "num_class_embeds": (None,),
        "resnet_time_scale_shift": ("default", "scale_shift"),
        "downsample_type": ("conv", "resnet"),
        "upsample_type": ("conv", "resnet"),
        "downsample_padding": (0, 1),
    }
)
"""What a field may be, where that is less than diffusers allows."""

AVERAGES = frozenset(
    {
        "decay",
        "inv_gamma",
        "min_decay",
        "optimization_step",
        "power",
        "update_after_step",
        "use_ema_warmup",
    }
)
"""What diffusers' moving average writes into the file of its model."""


def architecture_of(config: Table, options: Options) -> UNet2DConfig:
    """The architecture that ``config`` describes. Raises `TicketError` or `ConfigError`."""
    kind = config.get("_class_name")
    if kind != "UNet2DModel":
        raise TicketError(expected("_class_name", "'UNet2DModel'", repr(kind)[:80]))
    given = {n: v for n, v in config.items() if not n.startswith("_") and n not in AVERAGES}
    for name in given:
        if name not in DEFAULTS:
            raise TicketError(expected("config.json", "fields of UNet2DModel", repr(name)[:80]))
    table = {**DEFAULTS, **given}
    for name, allowed in ONLY.items():
        if not any(table[name] == value and type(table[name]) is type(value) for value in allowed):
            wanted = " or ".join(_json_text(value) for value in allowed)
            raise TicketError(expected(name, wanted, _json_text(table[name])))
    if table["in_channels"] != table["out_channels"]:
        wanted = f"as many as in_channels, {table['in_channels']!r:.20}"
        got = f"{table['out_channels']!r:.20} (a learned variance is not supported)"
        raise TicketError(expected("out_channels", wanted, got))
    for name in ("attention_head_dim", "attn_norm_num_groups"):
        # Null means something to diffusers; 0 does only to us.
        if table[name] is not None and (type(table[name]) is not int or table[name] < 1):
            wanted = "an integer of at least 1, or null"
            raise TicketError(expected(name, wanted, _json_text(table[name])))
    if table["dropout"] != 0:
        options.tell(f"dropout {table['dropout']!r:.20} is for training alone and is left out.")
    widths = _tuple(table, "block_out_channels")
    scale_shift = table["resnet_time_scale_shift"] == "scale_shift"
    attention_groups = table["attn_norm_num_groups"]
    if attention_groups is None:
        attention_groups = 0 if scale_shift else table["norm_num_groups"]
    middle = table["mid_block_type"] is not None
    return UNet2DConfig(
        channels=table["in_channels"],
        image_size=_image_size(table["sample_size"], options),
        block_out_channels=widths,
        down_block_types=_types(table, "down_block_types"),
        up_block_types=_types(table, "up_block_types"),
        layers_per_block=table["layers_per_block"],
        time_dim=table["time_embedding_dim"] or 4 * _first(widths),
        freq_shift=table["freq_shift"],
        flip_sin_to_cos=table["flip_sin_to_cos"],
        mid_block=middle,
        mid_block_scale_factor=_float(table["mid_block_scale_factor"]),
        add_attention=table["add_attention"],
        downsample_padding=table["downsample_padding"],
        downsample_type=table["downsample_type"],
        upsample_type=table["upsample_type"],
        head_dim=0 if table["attention_head_dim"] is None else table["attention_head_dim"],
        norm_num_groups=table["norm_num_groups"],
        attn_norm_num_groups=attention_groups,
        norm_eps=_float(table["norm_eps"]),
        resnet_time_scale_shift=table["resnet_time_scale_shift"],
    )


def _image_size(size: object, options: Options) -> int:
    """The one side of a square image."""
    if isinstance(size, list) and len(size) == 2:
        if size[0] != size[1]:
            raise TicketError(expected("sample_size", "a square", repr(size)[:80]))
        size = size[0]
    if size is None and options.image_size is None:
        raise TicketError(
            expected("sample_size", "a number (config.json lacks it: --image-size)", "none")
        )
    if size is None:
        size = options.image_size
    elif options.image_size not in (None, size):
        wanted = f"{size!r:.20}, as config.json says"
        raise TicketError(expected("--image-size", wanted, options.image_size))
    if type(size) is not int:
        raise TicketError(expected("sample_size", "an integer, or two", repr(size)[:80]))
    return size


def _tuple(table: Table, name: str) -> tuple[Any, ...]:
    value = table[name]
    if not isinstance(value, list):
        raise TicketError(expected(name, "a list", repr(value)[:80]))
    return tuple(value)


def _types(table: Table, name: str) -> tuple[Any, ...]:
    """Names of blocks; very old files have them with a prefix."""
    kinds = _tuple(table, name)
    return tuple(kind.removeprefix("UNetRes") if isinstance(kind, str) else kind for kind in kinds)


def _first(widths: tuple[Any, ...]) -> int:
    """0 where there is none: the architecture then refuses its widths before its time_dim."""
    return widths[0] if widths and type(widths[0]) is int else 0


def _float(value: object) -> Any:
    """JSON writes 1.0 as 1 at times."""
    return float(value) if type(value) is int else value


def _json_text(value: object) -> str:
    return json.dumps(value)[:80]
