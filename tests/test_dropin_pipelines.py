"""Our network in diffusers' pipelines, against networks of torch in the same pipelines."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

torch = pytest.importorskip("torch", reason="diffusers needs torch")
diffusers = pytest.importorskip("diffusers", reason="diffusers' pipelines are the peers here")

from diffusers.models.unets.unet_2d import UNet2DOutput
from diffusers_peer import prune, save, unet

from sparse_ddpm import Sampler, Ticket, UNet2D
from sparse_ddpm.api.unet2d import scheduler_config
from sparse_ddpm.convert import convert
from sparse_ddpm.errors import ConfigError, EngineError
from sparse_ddpm.sampling import alphas_cumprod, betas, normal
from sparse_ddpm.ticket import DiffusionConfig, UNetConfig, synthetic_ticket
from sparse_ddpm.ticket.config import OBJECTIVES, SCHEDULES
from sparse_ddpm.verify import torch_values

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:diffusers")

TINY = UNetConfig(dim=8, dim_mults=(1, 2), channels=3, image_size=8, groups=4, heads=2, dim_head=4)
RUNS = [
    ("DDPMPipeline", "DDPMScheduler", {}),
    ("DDIMPipeline", "DDIMScheduler", {}),
    ("DDIMPipeline", "DDIMScheduler", {"eta": 0.7, "use_clipped_model_output": True}),
    ("DDPMPipeline", "DPMSolverMultistepScheduler", {}),
]
"""Pipeline, scheduler, and what the pipeline is called with."""


class TorchUNet(torch.nn.Module):
    """The trainer's network, masked and in float64, with what pipelines ask of a UNet2DModel."""

    def __init__(self, ticket: Ticket) -> None:
        super().__init__()
        self.config = SimpleNamespace(
            sample_size=ticket.architecture.image_size, in_channels=ticket.architecture.channels
        )
        self.dtype, self.device = torch.float32, torch.device("cpu")
        self._values = torch_values(ticket)

    def forward(self, sample: torch.Tensor, timestep: torch.Tensor) -> UNet2DOutput:
        values = self._values(sample.numpy(), float(timestep))
        return UNet2DOutput(sample=torch.from_numpy(values["final_conv"]).float())


def tiny(objective: str = "eps", sparsity: float = 0.9, **settings: Any) -> Ticket:
    diffusion = DiffusionConfig(objective=objective, **settings)
    return synthetic_ticket(TINY, sparsity, seed=5, diffusion=diffusion)


@pytest.fixture(scope="module")
def ours() -> Iterator[UNet2D]:
    with Sampler(tiny("v"), threads=1) as sampler:
        yield sampler.unet2d()


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def images(network: Any, scheduler: Any, run: tuple[str, str, dict[str, Any]]) -> NDArray[Any]:
    pipeline = getattr(diffusers, run[0])(unet=network, scheduler=scheduler).to("cpu")
    pipeline.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(3)
    made = pipeline(
        batch_size=3, generator=generator, num_inference_steps=50, output_type="np", **run[2]
    )
    return np.asarray(made.images)


@pytest.mark.parametrize(
    ("run", "objective"),
    [*((run, "v") for run in RUNS), (RUNS[1], "eps"), (RUNS[0], "x0")],
    ids=lambda value: value if isinstance(value, str) else f"{value[0]}-{value[1]}",
)
def test_pipelines_make_the_trainers_images(
    run: tuple[str, str, dict[str, Any]], objective: str
) -> None:
    ticket = tiny(objective)
    with Sampler(ticket, threads=1) as sampler:
        network = sampler.unet2d()
        scheduler = network.scheduler(getattr(diffusers, run[1]))
        got = images(network, scheduler, run)
        wanted = images(TorchUNet(ticket), scheduler, run)
    assert wanted.std() > 0.05
    np.testing.assert_allclose(got, wanted, rtol=0, atol=1e-3)


@pytest.mark.parametrize("sparsity", [0.5, 0.99])
@pytest.mark.parametrize("run", RUNS, ids=lambda run: f"{run[0]}-{run[1]}")
def test_pipelines_make_diffusers_own_images(
    tmp_path: Path, run: tuple[str, str, dict[str, Any]], sparsity: float
) -> None:
    """A ``UNet2DModel``, converted; their scheduler, not one of ours."""
    # Not seed 0: at 99 % it is a network in which rounding grows, and in float32 diffusers' own
    # images are 4e-3 from its images in float64.
    model = unet(1, resnet_time_scale_shift="scale_shift")
    prune(model, sparsity)
    scheduler = getattr(diffusers, run[1])(timestep_spacing="trailing")
    with Sampler(convert(save(model, tmp_path)), threads=1) as sampler:
        got = images(sampler.unet2d(), scheduler, run)
    np.testing.assert_allclose(got, images(model, scheduler, run), rtol=0, atol=1e-3)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_schedulers_learn_the_tickets_process(schedule: str, objective: str) -> None:
    diffusion = DiffusionConfig(schedule=schedule, objective=objective, timesteps=400, clip=False)
    config = scheduler_config(diffusion)
    scheduler = diffusers.DDIMScheduler(**config)
    assert len(config["trained_betas"]) == 400
    np.testing.assert_allclose(1 - scheduler.alphas_cumprod, 1 - alphas_cumprod(diffusion), 2e-3)
    names = {"eps": "epsilon", "x0": "sample", "v": "v_prediction"}
    assert scheduler.config.prediction_type == names[objective]
    assert scheduler.config.clip_sample is False
    if schedule in ("linear", "cosine", "sigmoid"):
        np.testing.assert_allclose(config["trained_betas"], betas(schedule, 400), rtol=1e-9)


def test_a_scheduler_takes_settings_of_its_own(ours: UNet2D) -> None:
    scheduler = ours.scheduler(diffusers.DPMSolverMultistepScheduler, solver_order=3)
    assert scheduler.config.solver_order == 3
    assert scheduler.config.timestep_spacing == "trailing"
    leading = ours.scheduler(diffusers.DDIMScheduler, timestep_spacing="leading")
    assert leading.config.timestep_spacing == "leading"


def test_a_loop_of_ones_own_is_our_sampler(ours: UNet2D) -> None:
    """Their scheduler, our network, our noise: the images of `Sampler.sample`."""
    scheduler = ours.scheduler(diffusers.DDIMScheduler)
    scheduler.set_timesteps(20)
    x = torch.from_numpy(normal(7, [0, 1], 0, (3, 8, 8)))
    for t in scheduler.timesteps:
        n = ours(x, t).sample
        x = scheduler.step(n, t, x, use_clipped_model_output=True).prev_sample
    wanted = ours.sampler.sample_float(2, seed=7, steps=20)
    np.testing.assert_allclose(x.numpy(), wanted, rtol=0, atol=1e-4)


def test_every_way_to_say_when(ours: UNet2D) -> None:
    x = torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    (wanted,) = ours(x, 7, return_dict=False)
    for timestep in (7.0, np.int64(7), torch.tensor(7), torch.tensor([7]), torch.tensor([7.0] * 3)):
        assert torch.equal(ours(x, timestep).sample, wanted)
    values = torch_values(ours.sampler.ticket)
    for t in (0, 3.25, 999, 1500.5, -1):
        got = ours(x, t).sample.numpy()
        np.testing.assert_allclose(got, values(x.numpy(), t)["final_conv"], rtol=0, atol=1e-4)


def test_every_image_at_its_own_time(ours: UNet2D) -> None:
    x = torch.randn(5, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    times = torch.tensor([5.0, 700.0, 5.0, 2.5, 700.0])
    got = ours(x, times).sample
    for i, t in enumerate(times):
        torch.testing.assert_close(got[i : i + 1], ours(x[i : i + 1], t).sample, rtol=0, atol=1e-5)


@pytest.mark.parametrize("count", [0, 1, 16, 35])
def test_batches_of_any_size(ours: UNet2D, count: int) -> None:
    x = torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    got = ours(x, 400).sample
    assert got.shape == x.shape
    for i in range(0, count, 17):
        torch.testing.assert_close(got[i : i + 1], ours(x[i : i + 1], 400).sample)


def test_what_is_seen_once_is_planned_once(ours: UNet2D, monkeypatch: pytest.MonkeyPatch) -> None:
    import sparse_ddpm.engine.cpu as cpu

    tables = []
    made = cpu.Films.table

    def counted(films: Any, program: Any, timesteps: Any) -> Any:
        tables.append(len(timesteps))
        return made(films, program, timesteps)

    monkeypatch.setattr(cpu.Films, "table", counted)
    x = torch.zeros(1, 3, 8, 8)
    with Sampler(ours.sampler.ticket, threads=1) as sampler:
        network = sampler.unet2d()
        for t in (999, 500, 0):
            network(x, t)
        assert tables == [1000]
        fractions = np.linspace(0.5, 900.5, 20)
        network.prepare(fractions)
        network.prepare(torch.arange(10))
        for t in fractions:
            network(x, t)
        assert tables == [1000, 1020]


def test_a_long_process_gets_rows_as_it_goes() -> None:
    with Sampler(tiny(timesteps=100_000), threads=1) as sampler:
        network = sampler.unet2d()
        x = torch.zeros(1, 3, 8, 8)
        for t in (99_999, 50_000):
            network(x, t)
        with sampler.workers.lend() as worker:
            assert len(worker.planned(1)._rows) == 2


def test_dtypes_go_in_and_come_out(ours: UNet2D) -> None:
    x = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    wanted = ours(x, 9).sample
    for dtype, error in ((torch.float64, 1e-6), (torch.float16, 1e-2), (torch.bfloat16, 1e-1)):
        got = ours(x.to(dtype), 9).sample
        assert got.dtype == dtype
        torch.testing.assert_close(got.float(), wanted, rtol=0, atol=error)
    strided = x.permute(0, 1, 3, 2)
    torch.testing.assert_close(ours(strided, 9).sample, ours(strided.contiguous(), 9).sample)


@pytest.mark.parametrize(
    ("sample", "timestep", "message"),
    [
        (torch.zeros(1, 1, 8, 8), 0, r"sample: expected a tensor \[N, 3, 8, 8\], got \(1, 1, 8"),
        (np.zeros((1, 3, 8, 8)), 0, "sample: expected a tensor .* got ndarray"),
        (torch.zeros(1, 3, 8, 8, dtype=torch.int64), 0, "sample: expected floating-point"),
        (torch.zeros(2, 3, 8, 8), torch.arange(3), "timestep: expected 1 or 2 numbers, got 3"),
        (torch.zeros(2, 3, 8, 8), float("nan"), "timestep: expected finite numbers"),
        (torch.zeros(2, 3, 8, 8), "soon", "timestep: expected numbers, got 'soon'"),
    ],
)
def test_wrong_arguments_are_named(ours: UNet2D, sample: Any, timestep: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ours(sample, timestep)


def test_classes_and_gradients_are_refused(ours: UNet2D) -> None:
    x = torch.zeros(1, 3, 8, 8)
    with pytest.raises(ConfigError, match="class_labels: expected none"):
        ours(x, 0, torch.zeros(1))
    with pytest.raises(EngineError, match="sample: expected no gradient"):
        ours(x.clone().requires_grad_(), 0)
    with torch.no_grad():
        ours(x.clone().requires_grad_(), 0)


def test_it_says_that_it_cannot_move(ours: UNet2D) -> None:
    assert ours.to("cpu") is ours
    assert ours.to(torch.float32) is ours.float() is ours
    for move in (ours.half, ours.double, lambda: ours.to(torch.bfloat16)):
        with pytest.raises(EngineError, match="dtype of the network: expected float32"):
            move()
    with pytest.raises(EngineError, match=r"device of the network: expected cpu, .* got meta"):
        ours.to("meta")
    assert "cpu " in repr(ours)


def test_pipelines_on_several_threads(ours: UNet2D) -> None:
    run = RUNS[1]
    wanted = images(ours, ours.scheduler(diffusers.DDIMScheduler), run)
    got: list[NDArray[Any]] = []

    def draw() -> None:
        got.append(images(ours, ours.scheduler(diffusers.DDIMScheduler), run))

    threads = [threading.Thread(target=draw) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(got) == 3
    for one in got:
        np.testing.assert_array_equal(one, wanted)


@pytest.mark.slow
def test_a_gpus_engine_keeps_its_tensors(triton_device: Any, triton_dtypes: Any) -> None:
    """Small: without a GPU it is Triton's interpreter that runs."""
    small = UNetConfig(dim=8, dim_mults=(1,), channels=1, image_size=2, heads=1, dim_head=4)
    ticket = synthetic_ticket(small, 0.8)
    dtype = str(triton_dtypes[0]).removeprefix("torch.")
    tolerance = 1e-4 if dtype == "float32" else 3e-2
    x = torch.randn(2, 1, 2, 2, generator=torch.Generator().manual_seed(0))
    with Sampler(ticket, device="cuda", dtype=dtype) as sampler, Sampler(ticket) as other:
        network = sampler.unet2d()
        assert network.device.type == triton_device.type
        got, wanted = (one(x, 20).sample for one in (network, other.unet2d()))
        torch.testing.assert_close(got, wanted, rtol=0, atol=tolerance)
        # Seeds that differ, then one seed.
        for how in ({"seeds": [4, 9]}, {"n": 2, "seed": 4}):
            got, wanted = (one.sample_float(steps=1, **how) for one in (sampler, other))
            np.testing.assert_allclose(got, wanted, rtol=0, atol=10 * tolerance)


def test_diffusers_is_optional() -> None:
    code = (
        "import sys\n"
        "class Wall:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.split('.')[0] == 'diffusers':\n"
        "            raise ModuleNotFoundError(name, name=name)\n"
        "sys.meta_path.insert(0, Wall())\n"
        "from sparse_ddpm import Sampler, SparseDDPMError\n"
        "try:\n"
        "    Sampler.load('mnist').unet2d()\n"
        "except SparseDDPMError as error:\n"
        "    assert 'torch and diffusers: pip install' in str(error), error\n"
        "else:\n"
        "    raise SystemExit('nothing was said')\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env=dict(os.environ))
