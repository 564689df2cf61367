"""Files of lucidrains' trainer and of the paper's fork: what a ticket of them computes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from lucid_unet import LucidUNet, trainer_file

from sparse_ddpm import Sampler
from sparse_ddpm.accounting import account
from sparse_ddpm.convert import Options, convert
from sparse_ddpm.engine import make_engine
from sparse_ddpm.engine.plan import make_plan
from sparse_ddpm.lower import lower
from sparse_ddpm.sampling import make_table, sample_loop
from sparse_ddpm.ticket import Ticket, load_ticket, save_ticket

VERSIONS = [
    (0, 32, 0),
    (1, 4, 2),
    (1, 6, 4),
    (1, 7, 0),
    (1, 7, 3),
    (1, 7, 7),
    (1, 8, 15),
    (1, 9, 0),
    (2, 3, 4),
]
T = 417


def converted(folder: Path, content: dict[str, Any], **options: Any) -> Ticket:
    """Saved by torch, converted, written as a ticket and read again."""
    torch.save(content, folder / "model-1.pt")
    if content["version"] < "1.5":
        options.setdefault("objective", "eps")
    options = {"image_size": 6, "heads": 2, **options}
    save_ticket(convert(folder / "model-1.pt", Options(**options)), folder / "ticket.pt")
    return load_ticket(folder / "ticket.pt")


def difference(ticket: Ticket, network: LucidUNet, device: str = "cpu", batch: int = 2) -> float:
    """Largest one of one forward pass, over the largest output."""
    size = ticket.architecture.image_size
    rng = np.random.default_rng(3)
    x = rng.standard_normal((batch, network.channels, size, size)).astype(np.float32)
    engine = make_engine(lower(ticket), device, batch=batch)
    engine.set_schedule(np.array([T]))
    got = engine.run(x, 0)
    engine.close()
    wanted = network(torch.from_numpy(x), float(T)).numpy()
    assert wanted.std(axis=(0, 2, 3)).min() > 1e-3, "a network that says nothing"
    return float(np.abs(got - wanted).max() / np.abs(wanted).max())


@pytest.mark.parametrize("sparsity", [0.0, 0.5, 0.9, 0.99])
@pytest.mark.parametrize("version", VERSIONS, ids=str)
def test_one_forward_pass(tmp_path: Path, version: tuple[int, ...], sparsity: float) -> None:
    network = LucidUNet(version, seed=len(version))
    network.prune(sparsity)
    ticket = converted(tmp_path, trainer_file(network))
    assert abs(ticket.sparsity - sparsity) < 0.01
    assert bool(ticket.masks) == (sparsity > 0)
    for device in ("numpy", "cpu"):
        assert difference(ticket, network, device) < 1e-5


@pytest.mark.parametrize(
    ("shape", "size", "options"),
    [
        ({"mults": (1,)}, 3, {}),
        ({"mults": (2, 1, 3), "channels": 3}, 12, {}),
        ({"dim": 12, "groups": 3, "heads": 1, "dim_head": 5}, 2, {"groups": 3, "heads": 1}),
        ({"dim": 16, "mults": (1, 1, 1, 1), "channels": 2, "heads": 3}, 8, {"heads": 3}),
        ({"heads": 4, "dim_head": 32}, 4, {"heads": None}),
    ],
)
@pytest.mark.parametrize("version", [(1, 4, 2), (1, 8, 11), (2, 2, 0)], ids=str)
def test_odd_networks(
    tmp_path: Path,
    version: tuple[int, ...],
    shape: dict[str, Any],
    size: int,
    options: dict[str, Any],
) -> None:
    network = LucidUNet(version, **shape)
    network.prune(0.9)
    ticket = converted(tmp_path, trainer_file(network), image_size=size, **options)
    assert difference(ticket, network, batch=3) < 1e-5


@pytest.mark.parametrize("version", [(1, 8, 11), (2, 1, 1)], ids=str)
def test_softmax_attention_at_any_level(tmp_path: Path, version: tuple[int, ...]) -> None:
    network = LucidUNet(version, mults=(1, 1, 2), full=(True, False, True))
    ticket = converted(tmp_path, trainer_file(network), image_size=8)
    assert ticket.architecture.full_attention == (0, 2)
    assert difference(ticket, network) < 1e-5


@pytest.mark.parametrize("objective", ["pred_noise", "pred_x0", "pred_v"])
@pytest.mark.parametrize("name", ["linear", "cosine", "sigmoid"])
def test_schedules_and_objectives_are_recognised(tmp_path: Path, name: str, objective: str) -> None:
    network = LucidUNet((1, 6, 4), mults=(1,))
    content = trainer_file(network, name=name, objective=objective, timesteps=250)
    diffusion = converted(tmp_path, content).diffusion
    known = {"pred_noise": "eps", "pred_x0": "x0", "pred_v": "v"}
    assert (diffusion.schedule, diffusion.objective) == (name, known[objective])
    assert diffusion.timesteps == 250
    assert diffusion.clip


def test_images_after_fifty_steps(tmp_path: Path) -> None:
    network = LucidUNet((1, 4, 2), channels=3)
    network.prune(0.9)
    ticket = converted(tmp_path, trainer_file(network, name="cosine"), objective="v")
    table = make_table(ticket.diffusion, steps=50)

    def denoise(x: np.ndarray[Any, Any], row: int) -> np.ndarray[Any, Any]:
        return network(torch.from_numpy(x), float(table.timesteps[row])).float().numpy()

    wanted = sample_loop(denoise, table, seed=5, image_indices=np.arange(2), shape=(3, 6, 6))
    with Sampler(ticket, device="cpu", threads=1) as sampler:
        got = sampler.sample_float(2, steps=50, seed=5)
    assert np.abs(got - wanted).max() < 1e-3


def test_the_forks_weight_standardisation_stays_sparse(tmp_path: Path) -> None:
    network = LucidUNet((1, 4, 2), dim=32, mults=(1, 2), channels=3)
    network.prune(0.99)
    ticket = converted(tmp_path, trainer_file(network), image_size=16)
    assert ticket.architecture.weight_standardization == "full"
    assert difference(ticket, network) < 1e-5
    rows = {row.name: row for row in account(make_plan(lower(ticket), 16))}
    convs = [n for n in rows if n.endswith((".conv1", ".conv2"))]
    assert len(convs) == 22
    dense = sum(rows[name].dense_flops for name in convs)
    sums = sum(row.executed_flops for n, row in rows.items() if n.endswith((".sum", ".box")))
    surviving = sum(rows[name].surviving_flops for name in convs)
    executed = sum(rows[name].executed_flops for name in convs)
    # 1 % of the weights, one entry for each row, and a sum over all channels beside it
    assert surviving < 0.015 * dense
    assert executed + sums < 0.06 * dense


def test_the_average_is_taken_and_raw_weights_on_request(tmp_path: Path) -> None:
    average, raw = LucidUNet((1, 6, 4), seed=1), LucidUNet((1, 6, 4), seed=2)
    raw.prune(0.9)
    heard: list[str] = []
    content = trainer_file(average, raw=raw)
    ticket = converted(tmp_path, content, tell=heard.append)
    assert difference(ticket, average) < 1e-5
    assert not ticket.masks
    assert len(heard) == 1
    assert "--raw" in heard[0]
    ticket = converted(tmp_path, content, raw=True)
    assert difference(ticket, raw) < 1e-5
    assert ticket.sparsity > 0.85


def test_first_versions_kept_the_average_as_a_state_dict(tmp_path: Path) -> None:
    network = LucidUNet((0, 32, 0))
    content = trainer_file(network)
    content["ema"] = content["model"]
    del content["version"]
    torch.save(content, tmp_path / "model-1.pt")
    options = Options(image_size=6, heads=2, objective="eps")
    assert difference(convert(tmp_path / "model-1.pt", options), network) < 1e-5


def test_zeros_where_tickets_have_no_mask_are_values(tmp_path: Path) -> None:
    network = LucidUNet((1, 4, 2))
    network.prune(0.9)
    for name in ("mid_block1.block1.norm.weight", "downs.0.0.block2.norm.weight"):
        network.state[name][1:] = 0.0
    ticket = converted(tmp_path, trainer_file(network))
    assert "init_conv.weight" not in ticket.masks
    assert np.count_nonzero(ticket.weights["init_conv.weight"]) < 80
    assert difference(ticket, network) < 1e-5
