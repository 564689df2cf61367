"""A folder of diffusers: a pipeline, or a ``UNet2DModel`` with its scheduler's file beside it."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from sparse_ddpm.convert.diffusers_config import architecture_of
from sparse_ddpm.convert.diffusers_scheduler import diffusion_of
from sparse_ddpm.convert.masks import Masks, masks_of, without_reparametrization
from sparse_ddpm.convert.options import Options
from sparse_ddpm.convert.read import floats, read_file, tensors_of
from sparse_ddpm.errors import TicketError, expected
from sparse_ddpm.ticket import Parameter, Provenance, Ticket, parameters_of

CONFIG = "config.json"
SCHEDULER = "scheduler_config.json"
STEM = "diffusion_pytorch_model"
MAX_JSON = 10_000_000

OLD_NAMES = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
"""Of an attention's matrices before diffusers 0.15."""


def convert_folder(path: Path, options: Options) -> Ticket:
    """The ticket of the model in a folder. Raises `TicketError` or `ConfigError` with the reason.

    The model lies in the folder itself or in ``unet`` (``unet_ema``, a training run's average,
    goes before it, unless the options want what was trained); the scheduler's file beside it, or
    in ``scheduler``. Weights are safetensors or torch files, in one piece or several.
    """
    for name in ("groups", "heads", "source_version"):
        if getattr(options, name) is not None:
            wanted = f"none for a diffusers folder, whose {CONFIG} says it"
            option = f"--{name.replace('_', '-')}"
            raise TicketError(expected(option, wanted, getattr(options, name)))
    folder = _model_folder(path, options)
    architecture = architecture_of(_json(folder / CONFIG), options)
    places = (path / "scheduler", path, folder, folder.parent / "scheduler", folder.parent)
    found = next((place / SCHEDULER for place in places if (place / SCHEDULER).is_file()), None)
    diffusion = diffusion_of(None if found is None else _json(found), options)
    parameters = parameters_of(architecture)
    tensors, given = without_reparametrization(_state_dict(folder, options))
    weights, given = _ours(tensors, given, parameters)
    masks = masks_of(weights, given, parameters)
    provenance = Provenance(rewinding="none", allocation="imported")
    ticket = Ticket(architecture, diffusion, provenance, weights, masks)
    exact = dataclasses.replace(provenance, sparsity=ticket.sparsity)
    return dataclasses.replace(ticket, provenance=exact)


def _model_folder(path: Path, options: Options) -> Path:
    """Where the model's ``config.json`` lies."""
    inside = ["unet"] if options.raw else ["unet_ema", "unet"]
    for folder in (*(path / name for name in inside), path):
        if (folder / CONFIG).is_file():
            return folder
    wanted = f"a diffusers folder ({CONFIG} in it, or in its folder unet)"
    raise TicketError(expected(str(path), wanted, "neither"))


def _json(path: Path) -> Mapping[str, Any]:
    """The table in a JSON file."""
    try:
        if path.stat().st_size > MAX_JSON:
            raise ValueError(f"more than {MAX_JSON} bytes")
        table = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise TicketError(expected(str(path), "a JSON file", str(error)[:200])) from error
    if not isinstance(table, dict):
        raise TicketError(expected(str(path), "a table", type(table).__name__))
    return table


def _state_dict(folder: Path, options: Options) -> dict[str, Tensor]:
    """All tensors of a model: safetensors rather than bin, whole precision rather than half."""
    for variant in ("", ".fp16", ".bf16"):
        for suffix in ("safetensors", "bin"):
            name = f"{STEM}{variant}.{suffix}"
            if (folder / name).is_file():
                if variant:
                    options.tell(f"{name} has half precision, and there is no other file.")
                return tensors_of(name, read_file(folder / name))
            index = folder / f"{STEM}.{suffix}.index{variant}.json"
            if index.is_file():
                return _pieces(index)
    wanted = f"{STEM}.safetensors or {STEM}.bin"
    raise TicketError(expected(str(folder), wanted, "neither"))


def _pieces(index: Path) -> dict[str, Tensor]:
    """A state dict that lies in several files, which ``index`` names."""
    where = _json(index).get("weight_map")
    if not isinstance(where, dict) or not all(isinstance(file, str) for file in where.values()):
        raise TicketError(expected(f"{index}: weight_map", "a table of file names", "none"))
    tensors: dict[str, Tensor] = {}
    for file in sorted(set(where.values())):
        if Path(file).name != file:
            raise TicketError(expected(f"{index}: weight_map", "files beside it", repr(file)[:80]))
        tensors.update(tensors_of(file, read_file(index.parent / file)))
    return tensors


def _ours(
    tensors: Mapping[str, Tensor], given: Masks, parameters: tuple[Parameter, ...]
) -> tuple[dict[str, NDArray[np.float32]], Masks]:
    """Weights and masks in our shapes, by our names, which are theirs but for `OLD_NAMES`."""
    by_name = {_new_name(name): name for name in tensors}
    weights: dict[str, NDArray[np.float32]] = {}
    masks: Masks = {}
    for parameter in parameters:
        name = by_name.pop(parameter.name, None)
        if name is None:
            wanted = f"a tensor {parameter.name}"
            raise TicketError(expected("weights", wanted, "none of that name"))
        tensor = floats(name, tensors[name])
        shapes = [parameter.shape]
        if parameter.shape[2:] == (1, 1):
            shapes.append(parameter.shape[:2])  # a linear map of every pixel
        if tuple(tensor.shape) not in shapes:
            wanted = " or ".join(str(list(shape)) for shape in shapes)
            raise TicketError(expected(name, f"shape {wanted}", list(tensor.shape)))
        weights[parameter.name] = tensor.numpy().reshape(parameter.shape)
        if name in given:
            masks[parameter.name] = given[name].reshape(parameter.shape)
    if by_name:
        name = next(iter(by_name.values()))
        more = f" and {len(by_name) - 1} more" if len(by_name) > 1 else ""
        wanted = "no other tensors than config.json asks for"
        raise TicketError(expected("weights", wanted, f"{name}{more}"))
    return weights, masks


def _new_name(name: str) -> str:
    """Today's name of a tensor."""
    stem, _, kind = name.rpartition(".")
    owner, _, part = stem.rpartition(".")
    if ".attentions." in f".{owner}" and part in OLD_NAMES:
        return f"{owner}.{OLD_NAMES[part]}.{kind}"
    return name
