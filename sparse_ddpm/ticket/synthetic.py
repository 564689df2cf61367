"""Random tickets of a given sparsity, for benchmarks and tests, where training would wait."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
from numpy.typing import NDArray

from sparse_ddpm.errors import ConfigError, expected
from sparse_ddpm.ticket.architecture import Architecture, parameters_of
from sparse_ddpm.ticket.config import DiffusionConfig, Pattern, Provenance
from sparse_ddpm.ticket.parameters import Parameter
from sparse_ddpm.ticket.ticket import Ticket, check_parameter_count


def synthetic_ticket(
    architecture: Architecture,
    sparsity: float,
    pattern: str = "element",
    seed: int = 0,
    diffusion: DiffusionConfig | None = None,
) -> Ticket:
    """A ticket with random weights and random masks, the same fraction pruned in every tensor.

    Of the ``u`` units (``pattern``: ``element``, ``vector:G``, ``block:RxC``) of each prunable
    tensor, ``max(1, round(u * (1 - sparsity)))`` survive. Weights are normal with variance 1 over
    the mean surviving fan-in, so that activations stay of order 1; gains scatter around 1 and
    biases around 0. Raises `ConfigError` for a sparsity outside [0, 1) or an unknown pattern.
    """
    if not 0.0 <= sparsity < 1.0:
        raise ConfigError(expected("sparsity", "0 <= sparsity < 1", repr(sparsity)))
    unit = Pattern.parse(pattern)
    parameters = parameters_of(architecture)
    check_parameter_count(parameters)
    rng = np.random.default_rng(seed)
    weights: dict[str, NDArray[np.float32]] = {}
    masks: dict[str, NDArray[np.bool_]] = {}
    for parameter in parameters:
        if parameter.prunable:
            masks[parameter.name] = random_mask(parameter.shape, sparsity, unit, rng)
        weights[parameter.name] = _random_weight(parameter, masks.get(parameter.name), rng)
        for array in (weights, masks):
            if parameter.name in array:
                array[parameter.name].setflags(write=False)
    provenance = Provenance(
        dataset="synthetic",
        seed=seed,
        rewinding="none",
        allocation="uniform",
        pattern=pattern,
        sparsity=float(sparsity),
    )
    ticket = Ticket(architecture, diffusion or DiffusionConfig(), provenance, weights, masks)
    exact = dataclasses.replace(provenance, sparsity=ticket.sparsity)
    return dataclasses.replace(ticket, provenance=exact)


def random_mask(
    shape: tuple[int, ...], sparsity: float, unit: Pattern, rng: np.random.Generator
) -> NDArray[np.bool_]:
    """A mask of whole units, uniformly random. Units at an edge are cut off by the edge.

    ``shape``: ``[Cout, Cin, kh, kw]`` or ``[out, in]``; at least one unit survives.
    """
    rows, columns = shape[:2]
    taps = math.prod(shape[2:])
    grid = (-(-rows // unit.rows), -(-columns // unit.columns), taps)
    count = math.prod(grid)
    keep = max(1, round(count * (1.0 - sparsity)))
    units = np.zeros(count, dtype=bool)
    units[rng.choice(count, keep, replace=False, shuffle=False)] = True
    mask = units.reshape(grid)
    if unit.rows > 1:
        mask = np.repeat(mask, unit.rows, axis=0)[:rows]
    if unit.columns > 1:
        mask = np.repeat(mask, unit.columns, axis=1)[:, :columns]
    return np.array(mask).reshape(shape)


def _random_weight(
    parameter: Parameter, mask: NDArray[np.bool_] | None, rng: np.random.Generator
) -> NDArray[np.float32]:
    shape = parameter.shape
    if len(shape) == 1:
        noise = rng.standard_normal(shape, dtype=np.float32)
        is_gain = parameter.name.endswith((".gain", ".weight"))
        return 1.0 + 0.2 * noise if is_gain else 0.1 * noise
    survivors = math.prod(shape) if mask is None else int(np.count_nonzero(mask))
    scale = np.float32(1.0 / math.sqrt(max(1.0, survivors / shape[0])))
    values = scale * rng.standard_normal(survivors, dtype=np.float32)
    if mask is None:
        return values.reshape(shape)
    weight = np.zeros(shape, dtype=np.float32)
    weight[mask] = values
    return weight
