"""The sparse trainer's kernels beside torch's autograd in float64: results and all gradients."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the trainer needs torch")

from sparse_ddpm_kernels import KernelError, training

try:
    ISAS = training.isas()
except KernelError as error:
    pytest.skip(str(error), allow_module_level=True)

from sparse_ddpm.errors import ConfigError
from sparse_ddpm.model.sparse import SparseUNet, unsupported
from sparse_ddpm.model.sparse.engine import job_sizes
from sparse_ddpm.model.unet import UNet
from sparse_ddpm.ticket.config import Pattern, UNetConfig
from sparse_ddpm.ticket.synthetic import random_mask

TINY = UNetConfig(
    dim=8, dim_mults=(1, 2, 3), channels=2, image_size=8, groups=4, heads=2, dim_head=3
)
WIDE = UNetConfig(dim=16, dim_mults=(1, 2), channels=3, image_size=12, heads=3, dim_head=5)
ONE = UNetConfig(dim=4, dim_mults=(1,), channels=1, image_size=5, groups=2, heads=1, dim_head=2)
FULL = dataclasses.replace(TINY, full_attention=(1, 2), weight_standardization="none")
DOT = UNetConfig(dim=8, dim_mults=(1,), channels=1, image_size=1, groups=2, heads=1, dim_head=1)


def models(config: UNetConfig, density: float, pattern: str = "element") -> tuple[Any, Any]:
    """The same masked network twice, in float32 and in float64, norms away from their start."""
    torch.manual_seed(1)
    rng = np.random.default_rng(1)
    single, double = UNet(config), UNet(config).double()
    with torch.no_grad():
        for one, two in zip(single.parameters(), double.parameters(), strict=True):
            if one.ndim == 1:
                one += 0.3 * torch.randn_like(one)
            two.copy_(one)
    masks = {
        name: torch.from_numpy(
            random_mask(tuple(m.weight.shape), 1.0 - density, Pattern.parse(pattern), rng)
        )
        for name, m in single.masked().items()
        if not name.startswith(("init_conv", "final_conv", "time"))
    }
    for model in (single, double):
        if density < 1.0:
            model.set_masks(masks)
    return single, double


def inputs(config: UNetConfig, count: int) -> tuple[Any, Any, Any]:
    torch.manual_seed(2)
    shape = (count, config.channels, config.image_size, config.image_size)
    return torch.randn(shape), torch.randint(1000, (count,)), torch.randn(shape)


def gradients(model: Any, function: Any, x: Any, t: Any, by: Any) -> tuple[Any, dict[str, Any]]:
    """The result and the gradients of its product with ``by``; those of films and time too."""
    model.zero_grad(set_to_none=True)
    out = function(x, t)
    (out * by).sum().backward()
    return out.detach(), {name: p.grad.clone() for name, p in model.named_parameters()}


def check(config: UNetConfig, density: float, count: int, pattern: str, **how: Any) -> None:
    single, double = models(config, density, pattern)
    x, t, by = inputs(config, count)
    wanted, exact = gradients(double, double, x.double(), t, by.double())
    found, ours = gradients(single, SparseUNet(single, **how), x, t, by)
    torch.testing.assert_close(found.double(), wanted, rtol=1e-5, atol=1e-5)
    _, torchs = gradients(single, single, x, t, by)
    largest = max(float(g.norm()) for g in exact.values())
    for name, gradient in exact.items():
        error = float((ours[name] - gradient).norm())
        # Torch's own rounding is what a gradient that cancels is measured by.
        allowed = max(1e-5 * float(gradient.norm()), 10 * float((torchs[name] - gradient).norm()))
        assert error <= allowed + 1e-7 * largest, (name, error, allowed)
        mask = single.masked()[name].mask if name in single.masked() else None
        if mask is not None:
            assert not ours[name][mask == 0].any(), name


@pytest.mark.parametrize("count", [1, 3, 17])
@pytest.mark.parametrize("density", [1.0, 0.5, 0.1, 0.01, 0.0])
def test_gradients_are_those_of_float64(density: float, count: int) -> None:
    check(TINY, density, count, "element")


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("pattern", ["element", "vector:4", "vector:8", "block:8x8"])
def test_instruction_sets_and_patterns(isa: str, pattern: str) -> None:
    check(WIDE, 0.2, 5, pattern, isa=isa)


@pytest.mark.parametrize("config", [ONE, FULL, DOT])
@pytest.mark.parametrize("density", [1.0, 0.3])
def test_odd_networks(config: UNetConfig, density: float) -> None:
    check(config, density, 2, "element")


def test_panels_that_end_within_a_group() -> None:
    uneven = dataclasses.replace(TINY, dim=10, groups=2, dim_mults=(1, 3))
    check(uneven, 1.0, 2, "element")


def test_threads_change_no_bit_of_the_same_jobs() -> None:
    single, _ = models(TINY, 0.3)
    x, t, by = inputs(TINY, 40)
    assert job_sizes(40, 1, ISAS[-1]) == job_sizes(40, 2, ISAS[-1])
    runs = [gradients(single, SparseUNet(single, threads), x, t, by) for threads in (1, 2, 2)]
    for out, found in runs[1:]:
        assert torch.equal(out, runs[0][0])
        assert all(torch.equal(found[name], g) for name, g in runs[0][1].items())


@pytest.mark.parametrize("isa", ["avx512", "avx2"])
@pytest.mark.parametrize("images", [1, 8, 9, 16, 17, 25, 40, 64])
@pytest.mark.parametrize("threads", [1, 2, 3, 8])
def test_jobs_hold_all_images(isa: str, images: int, threads: int) -> None:
    sizes = job_sizes(images, threads, isa)
    assert images <= sum(sizes) < images + max(sizes)
    assert set(sizes) <= ({8, 16} if isa == "avx512" else {8})


def test_images_are_parted_by_time() -> None:
    assert job_sizes(40, 2, "avx512") == [16, 16, 8]
    assert job_sizes(64, 2, "avx512") == [16] * 4
    assert job_sizes(64, 8, "avx512") == [8] * 8


def test_images_do_not_see_each_other() -> None:
    single, _ = models(TINY, 0.3)
    x, t, _ = inputs(TINY, 20)
    sparse = SparseUNet(single)
    together = sparse(x, t).detach()
    for part in (slice(0, 1), slice(7, 18)):
        torch.testing.assert_close(sparse(x[part], t[part]).detach(), together[part])


def test_large_keys_do_not_overflow() -> None:
    single, double = models(TINY, 1.0)
    with torch.no_grad():
        for model in (single, double):
            for level in (*model.down, *model.up):
                level.attn.qkv.weight *= 100.0
    x, t, _ = inputs(TINY, 3)
    wanted = double(x.double(), t).detach()
    found = SparseUNet(single)(x, t).detach()
    assert torch.isfinite(found).all()
    torch.testing.assert_close(found.double(), wanted, rtol=1e-3, atol=1e-3)


def test_the_last_pass_only() -> None:
    single, _ = models(ONE, 0.5)
    x, t, _ = inputs(ONE, 1)
    sparse = SparseUNet(single)
    first = sparse(x, t)
    sparse(x, t)
    with pytest.raises(RuntimeError, match="expected the last forward pass"):
        first.sum().backward()


def test_gradients_add_up() -> None:
    single, _ = models(ONE, 0.5)
    x, t, by = inputs(ONE, 2)
    sparse = SparseUNet(single)
    _, once = gradients(single, sparse, x, t, by)
    (sparse(x, t) * by).sum().backward()
    for name, p in single.named_parameters():
        torch.testing.assert_close(p.grad, 2 * once[name])


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"weight_standardization": "full"}, "weight standardisation over pruned weights"),
        ({"block_norm": "rms"}, "block_norm rms"),
        ({"attention_norm": "rms"}, "attention_norm rms"),
        ({"attention_values": "sum"}, "attention_values sum"),
    ],
)
def test_what_the_kernels_cannot_do_is_refused(changes: dict[str, str], reason: str) -> None:
    model = UNet(dataclasses.replace(TINY, **changes))
    assert unsupported(model.config) == reason
    with pytest.raises(ConfigError, match=reason):
        SparseUNet(model)


def test_a_missing_library_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPARSE_DDPM_TRAIN_LIBRARY", "/nowhere/library.so")
    with pytest.raises(KernelError, match=r"expected the compiled library /nowhere/library\.so"):
        training.load()


def test_an_unknown_instruction_set_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPARSE_DDPM_ISA", "mmx")
    with pytest.raises(KernelError, match="SPARSE_DDPM_ISA: expected one of"):
        training.default_isa()
