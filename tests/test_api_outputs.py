"""What comes out of a sampler: seeds and images, formats, streams, callbacks, names."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sparse_ddpm import CancelledError, Sampler, Step, Ticket, save_ticket, ticket_names
from sparse_ddpm.errors import ConfigError, TicketError
from sparse_ddpm.sampling import to_uint8
from sparse_ddpm.ticket import DiffusionConfig, UNetConfig, find_ticket, synthetic_ticket
from sparse_ddpm.ticket import names as names_module


def tiny(channels: int = 3) -> Ticket:
    config = UNetConfig(dim=8, dim_mults=(1, 2), channels=channels, image_size=8, groups=4)
    return synthetic_ticket(config, 0.8, seed=5, diffusion=DiffusionConfig(objective="v"))


@pytest.fixture(scope="module")
def sampler() -> Iterator[Sampler]:
    with Sampler(tiny(), threads=1) as sampler:
        yield sampler


def close(a: Any, b: Any) -> None:
    np.testing.assert_allclose(a, b, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["ddim", "ddpm"])
def test_seeds_make_the_images_that_each_makes_alone(sampler: Sampler, name: str) -> None:
    how: dict[str, Any] = {"steps": 5, "sampler": name}
    seeds = [3, 2**64 - 1, 3, 0, 2**63]
    together = sampler.sample_float(seeds=seeds, **how)
    for image, seed in zip(together, seeds, strict=True):
        close(image, sampler.sample_float(1, seed=seed, **how)[0])
    assert np.abs(together[0] - together[1]).max() > 0.01
    of_three = sampler.sample_float(18, seed=3, **how)
    picked = sampler.sample_float(seeds=[3, 9, 3], indices=[17, 0, 2], batch_size=2, **how)
    close(picked[[0, 2]], of_three[[17, 2]])
    close(picked[1], sampler.sample_float(1, seed=9, **how)[0])
    close(sampler.sample_float(2, seed=3, indices=[4, 11], **how), of_three[[4, 11]])
    close(sampler.sample_float(seed=3, indices=np.arange(2, 5), **how), of_three[2:5])


def test_an_image_beyond_64_bits_of_integers(sampler: Sampler) -> None:
    one = sampler.sample_float(seed=1, indices=[2**64 - 1], steps=2)
    assert np.abs(one - sampler.sample_float(1, seed=1, steps=2)).max() > 0.01


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"seeds": [1], "seed": 2}, "seed: expected none beside seeds, got 2"),
        ({"n": 3, "seeds": [1, 2]}, "seeds: expected 3 integers from 0 .* got 2"),
        ({"seeds": [1, 2], "indices": [0]}, "indices: expected 2 integers .* got 1"),
        ({"seeds": []}, "seeds: expected 1 integers"),
        ({"seeds": [1.5]}, r"seeds: expected .* got \[1\.5\]"),
        ({"seeds": [-1]}, r"seeds: expected .* got \[-1\]"),
        ({"seeds": [2**64]}, "seeds: expected"),
        ({"seed": 2**64}, "seed"),
        ({"indices": [[0]]}, "indices: expected"),
        ({"output": "gif"}, "output: expected one of np, pil, float, torch, got 'gif'"),
    ],
)
def test_bad_requests_are_named(sampler: Sampler, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        sampler.sample(**settings)


def test_outputs_are_the_same_images(sampler: Sampler) -> None:
    how: dict[str, Any] = {"steps": 3, "seed": 4}
    floats = sampler.sample(2, output="float", **how)
    assert floats.shape == (2, 3, 8, 8)
    assert floats.dtype == np.float32
    assert np.abs(floats).max() <= 1
    levels = sampler.sample(2, **how)
    np.testing.assert_array_equal(levels, to_uint8(floats))
    pictures = sampler.sample(2, output="pil", **how)
    assert [picture.mode for picture in pictures] == ["RGB", "RGB"]
    np.testing.assert_array_equal(np.stack([np.asarray(one) for one in pictures]), levels)


def test_a_tensor_shares_the_images_memory(sampler: Sampler) -> None:
    torch = pytest.importorskip("torch")
    from sparse_ddpm.api.output import as_output

    floats = sampler.sample(2, steps=2, output="float")
    tensor = as_output(floats, "torch")
    assert tensor.data_ptr() == floats.ctypes.data
    assert torch.equal(tensor, sampler.sample(2, steps=2, output="torch"))


@pytest.mark.parametrize(("channels", "mode"), [(1, "L"), (4, "RGBA")])
def test_other_modes_of_pil(channels: int, mode: str) -> None:
    with Sampler(tiny(channels), threads=1) as sampler:
        (picture,) = sampler.sample(1, steps=1, output="pil")
        assert picture.mode == mode
        levels = sampler.sample(1, steps=1)[0]
        np.testing.assert_array_equal(np.asarray(picture).reshape(levels.shape), levels)


def test_pil_has_no_images_of_two_channels() -> None:
    with Sampler(tiny(2), threads=1) as sampler:
        with pytest.raises(ConfigError, match="output 'pil': expected images of 1, 3, 4 channels"):
            sampler.sample(1, output="pil")
        assert sampler.sample(1, steps=1).shape == (1, 8, 8, 2)


@pytest.mark.parametrize("name", ["ddim", "ddpm", "dpm++"])
def test_a_stream_ends_with_the_images(sampler: Sampler, name: str) -> None:
    how: dict[str, Any] = {"steps": 4, "sampler": name, "seed": 6, "batch_size": 2}
    steps = list(sampler.stream(3, **how))
    assert [(step.start, step.index, len(step.x)) for step in steps] == [
        *((0, i, 2) for i in range(4)),
        *((2, i, 1) for i in range(4)),
    ]
    assert [step.timestep for step in steps[:4]] == [999, 749, 499, 249]
    assert [step.last for step in steps] == [False, False, False, True] * 2
    made = np.concatenate([step.x for step in steps if step.last])
    close(made, sampler.sample_float(3, **how))
    close(steps[3].x0, steps[3].x)
    assert np.abs(steps[0].x0 - steps[0].x).max() > 0.01
    assert steps[0].images().shape == (2, 8, 8, 3)
    assert steps[0].images("pil")[0].size == (8, 8)


def test_steps_are_read_only_and_stay(sampler: Sampler) -> None:
    stream = sampler.stream(1, steps=3)
    first = next(stream)
    kept = first.x.copy(), first.x0.copy()
    with pytest.raises(ValueError, match="read-only"):
        first.x[:] = 0
    with pytest.raises(ValueError, match="read-only"):
        first.x0[:] = 0
    first.images("float")[:] = 7
    list(stream)
    np.testing.assert_array_equal(first.x, kept[0])
    np.testing.assert_array_equal(first.x0, kept[1])


def test_a_stream_may_be_left_and_checks_at_once(sampler: Sampler) -> None:
    next(sampler.stream(1, steps=3))
    with pytest.raises(ConfigError, match="steps: expected"):
        sampler.stream(1, steps=0)
    assert len(sampler.sample(1, steps=1)) == 1


def test_a_callback_sees_what_a_stream_yields(sampler: Sampler) -> None:
    how: dict[str, Any] = {"steps": 3, "batch_size": 2, "seed": 8}
    seen: list[Step] = []
    images = sampler.sample_float(3, callback=seen.append, **how)
    for step, other in zip(seen, sampler.stream(3, **how), strict=True):
        assert (step.start, step.index) == (other.start, other.index)
        np.testing.assert_array_equal(step.x, other.x)
    np.testing.assert_array_equal(images, sampler.sample_float(3, **how))
    images[:] = 0  # ours to change


@pytest.mark.parametrize("answer", [True, np.True_])
def test_true_from_the_callback_cancels(sampler: Sampler, answer: Any) -> None:
    seen: list[int] = []

    def stop(step: Step) -> Any:
        seen.append(step.index)
        return answer if step.index == 1 else None

    with pytest.raises(CancelledError, match="step 2 of 5"):
        sampler.sample(1, steps=5, callback=stop)
    assert seen == [0, 1]
    assert len(sampler.sample(1, steps=2, callback=lambda step: 1)) == 1


def test_what_a_callback_raises_goes_through(sampler: Sampler) -> None:
    def fail(step: Step) -> None:
        raise KeyError(step.index)

    with pytest.raises(KeyError):
        sampler.sample(1, steps=5, callback=fail)
    assert len(sampler.sample(1, steps=1)) == 1


def test_a_callback_may_use_its_sampler(sampler: Sampler) -> None:
    inner = []
    outer = sampler.sample_float(
        1,
        steps=3,
        seed=2,
        callback=lambda step: inner.append(sampler.sample_float(1, steps=2, seed=3)),
    )
    close(outer, sampler.sample_float(1, steps=3, seed=2))
    close(inner[2], sampler.sample_float(1, steps=2, seed=3))


def test_schedules_that_alternate_give_the_same_images(sampler: Sampler) -> None:
    wanted = {steps: sampler.sample_float(2, steps=steps) for steps in (2, 5, 9)}
    with Sampler(sampler.ticket, threads=1) as other:
        for steps in (9, 2, 5, 2, 9):
            np.testing.assert_array_equal(other.sample_float(2, steps=steps), wanted[steps])


def test_many_timesteps_do_not_pile_up(monkeypatch: pytest.MonkeyPatch) -> None:
    import sparse_ddpm.api.engines as engines

    monkeypatch.setattr(engines, "MAX_ROWS", 12)
    with Sampler(tiny(), threads=1) as sampler:
        first = sampler.sample_float(1, steps=7)
        sampler.sample_float(1, steps=11)
        np.testing.assert_array_equal(sampler.sample_float(1, steps=7), first)
        with sampler.workers.lend() as worker:
            assert len(worker.planned(1)._rows) <= 12


def test_shipped_tickets_have_names() -> None:
    assert "mnist" in ticket_names()
    assert find_ticket(None) == find_ticket("mnist") == ticket_names()["mnist"]
    with Sampler.load("mnist", threads=1) as sampler:
        assert sampler.ticket.provenance.dataset


def test_a_name_that_nobody_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(TicketError, match=r"ticket 'mnits': expected a file, or .*mnist.*neither"):
        Sampler.load("mnits")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mnist").mkdir()  # as of a data set
    assert find_ticket("mnist") == ticket_names()["mnist"]
    for path in ("some.pt", "folder/some", Path("mnist")):
        assert find_ticket(path) == Path(path)
    save_ticket(tiny(), tmp_path / "own.pt")
    (tmp_path / "own.pt").rename(tmp_path / "own")
    assert find_ticket("own") == Path("own")


def test_tickets_of_both_folders_have_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("assets/b.pt", "tickets/a.pt", "assets/judge.safetensors"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    monkeypatch.setattr(names_module, "__file__", str(tmp_path / "ticket" / "names.py"))
    assert list(ticket_names()) == ["a", "b"]
