"""The time embedding as nodes: timesteps in, rows of the time table out."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from sparse_ddpm.program import TimeEmbedding
from sparse_ddpm_export.graph import Graph
from sparse_ddpm_export.weights import weight_initializer

EXACT_BITS = 12


def time_rows(graph: Graph, time: TimeEmbedding, t: str) -> str:
    """The time table's row for each of ``t`` float32 ``[S]``: the name of ``[S, columns]``."""

    def linear(x: str, weight: NDArray[np.float32], bias: NDArray[np.float32], name: str) -> str:
        matrix = weight_initializer(graph, weight, f"{name}.weight")
        return graph.node(
            "Gemm", x, matrix, graph.trained(bias, f"{name}.bias"), out=name, transB=1
        )

    def silu(x: str, name: str) -> str:
        gate = graph.node("Sigmoid", x, out=f"time/{name}_gate")
        return graph.node("Mul", x, gate, out=f"time/{name}")

    hidden = linear(_sinusoids(graph, t, time), time.weight1, time.bias1, "time.linear1")
    hidden = _gelu(graph, hidden) if time.act == "gelu" else silu(hidden, "silu_1")
    hidden = silu(linear(hidden, time.weight2, time.bias2, "time.linear2"), "silu")
    return linear(hidden, time.film.to_dense(), time.film_bias, "time.film")


def _gelu(graph: Graph, hidden: str) -> str:
    # GELU as 0.5 x (1 + erf(x / sqrt 2)): the operator itself came with opset 20.
    root = graph.node("Div", hidden, graph.scalar(math.sqrt(2.0), "root_2"), out="time/root")
    erf = graph.node("Erf", root, out="time/erf")
    erf = graph.node("Add", erf, graph.scalar(1.0, "one"), out="time/erf_1")
    hidden = graph.node("Mul", hidden, erf, out="time/doubled")
    return graph.node("Mul", hidden, graph.scalar(0.5, "half"), out="time/gelu")


def _sinusoids(graph: Graph, t: str, time: TimeEmbedding) -> str:
    """``sin(t f_i)`` and ``cos(t f_i)``: the name of ``[S, dim]``.

    In float32 the product t f is off by up to 3e-5 at t = 1000. So f = coarse + fine, where t
    times coarse is exact for whole t below 4096, and the addition theorems put them together.
    """
    frequencies = time.frequencies
    mantissa, exponent = np.frexp(frequencies)
    coarse = np.ldexp(np.round(np.ldexp(mantissa, EXACT_BITS)), exponent - EXACT_BITS)
    t = graph.reshape(t, (-1, 1), "time/t")
    waves = []
    for name, part in (("coarse", coarse), ("fine", frequencies - coarse)):
        constant = graph.constant(part.astype(np.float32), f"time.{name}")
        angle = graph.node("Mul", t, constant, out=f"time/{name}")
        waves += [graph.node(kind, angle, out=f"time/{name}_{kind}") for kind in ("Sin", "Cos")]
    sin, cos, sin_fine, cos_fine = waves

    def product(a: str, b: str, name: str) -> str:
        return graph.node("Mul", a, b, out=f"time/{name}")

    sine = graph.node(
        "Add", product(sin, cos_fine, "sin_cos"), product(cos, sin_fine, "cos_sin"), out="time/sin"
    )
    cosine = graph.node(
        "Sub", product(cos, cos_fine, "cos_cos"), product(sin, sin_fine, "sin_sin"), out="time/cos"
    )
    both = (cosine, sine) if time.cos_first else (sine, cosine)
    return graph.node("Concat", *both, out="time/sinusoids", axis=1)
