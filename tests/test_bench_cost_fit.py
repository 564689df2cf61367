"""benchmarks/cost_fit.py finds the costs that times were made of."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

pytest.importorskip("scipy", reason="scipy fits without negative costs")

from sparse_ddpm.engine.costs import GROUPS, Fit, Read, conv_costs, copies_of

KINDS = (
    (1, (32, 8, 8)),
    (1, (16, 16, 16)),
    (1, (8, 4, 4)),
    (3, (32, 8, 8)),
    (3, (16, 16, 16)),
    (3, (64, 4, 4)),
    (7, (8, 16, 16)),
)


@pytest.fixture(scope="module")
def cost_fit() -> ModuleType:
    path = Path(__file__).resolve().parents[1] / "benchmarks" / "cost_fit.py"
    spec = importlib.util.spec_from_file_location("benchmark_cost_fit", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def layers(microseconds: float) -> list[dict[str, object]]:
    """Whose times are what the plan estimates, halos apart."""
    rng = np.random.default_rng(0)
    made: list[dict[str, object]] = []
    for size, shape in KINDS:
        for weights in (1 << 16, 1 << 22, 1 << 26):
            for _ in range(12):
                rows, (_, height, width) = shape[0], shape
                channels = int(rng.integers(4, 64))
                entries = {g: int(rng.integers(50, 5000)) for g in GROUPS}
                copies = int(rng.integers(1, channels * copies_of(size, (height, width)) + 1))
                costs = conv_costs("float32", 1, size, (height, width), weights)
                vectors = max(1.0, height * width / 16)
                times = {
                    f"{way.group}{'c' if way.copied else ''}": microseconds
                    * vectors
                    * cost.time(
                        entries[way.group], -(-rows // way.group) * way.group, Read(0, copies)
                    )
                    for way, cost in costs.items()
                }
                made.append(
                    {
                        "name": "conv",
                        "batch": 1,
                        "size": size,
                        "shape": shape,
                        "matrix": (rows, channels * size * size),
                        "weight_bytes": weights,
                        "copies": copies,
                        "entries": {str(group): n for group, n in entries.items()},
                        "measured_us": times,
                    }
                )
    return made


def test_the_costs_come_out_that_went_in(cost_fit: ModuleType) -> None:
    from sparse_ddpm.engine.costs import IMAGE_FITS

    for place, fits in IMAGE_FITS["float32"].items():
        for group, wanted in zip(GROUPS, fits, strict=True):
            found, error = cost_fit.fit(layers(2e-4), place, group, 5e3)
            assert error < 0.01
            assert isinstance(found, Fit)
            for each, part in zip(found, wanted, strict=True):
                assert each == pytest.approx(part, rel=0.03, abs=0.5)


def test_the_table_is_python(
    cost_fit: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "cost.json"
    file.write_text(json.dumps({"dtype": "float16", "layers": layers(1e-3)}))
    assert cost_fit.main([str(file)]) == 0
    text = capsys.readouterr().out
    made = eval(f"{{{text}}}", {"MappingProxyType": dict, "Fit": Fit})
    assert set(made["float16"]) == {"pointwise", "in place", "copies"}
    assert all(len(fits) == len(GROUPS) for fits in made["float16"].values())
