"""Guards: each is provoked, says what it saw, did and what to try, and keeps silent otherwise."""

from __future__ import annotations

import copy
import csv
import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from ignite.engine import Events
from test_training import StopAt, differences
from torch import nn

from medcyclegan import config, factory
from medcyclegan.config import Experiment
from medcyclegan.data.patches import PatchSpec
from medcyclegan.data.prepared import PreparedCohort
from medcyclegan.data.probe import probe_patches
from medcyclegan.errors import InputError
from medcyclegan.losses.adversarial import BCE, LSGAN, WGANGP, Hinge
from medcyclegan.training import guards
from medcyclegan.training.checkpoint import load_checkpoint
from medcyclegan.training.finite import FiniteGuard, guarded_step, weights_are_finite
from medcyclegan.training.guards import SaturationGuard, TranslationGuards, spread_ratio, undecided_loss
from medcyclegan.training.pool import ImagePool
from medcyclegan.training.probe import Probe


class During:
    """Does something at the start of every step that `when` chooses."""

    def __init__(self, when: Callable[[int], bool], what: Callable[[Any], None]) -> None:
        self.when = when
        self.what = what

    def attach(self, engine: Any) -> None:
        engine.add_event_handler(Events.ITERATION_STARTED, self)

    def __call__(self, engine: Any) -> None:
        if self.when(engine.state.iteration):
            self.what(engine)


def spoil_batch(engine: Any) -> None:
    engine.state.batch = {**engine.state.batch, "a": engine.state.batch["a"] * float("nan")}


def spoil_weights(engine: Any) -> None:
    nn.init.constant_(next(engine.objective.networks["gen_ab"].parameters()), float("nan"))


def guard_rows(run: Path) -> list[dict[str, str]]:
    with (run / "guards.csv").open(newline="") as stream:
        return list(csv.DictReader(stream))


def make_pair() -> tuple[nn.Linear, torch.optim.Adam]:
    torch.manual_seed(0)
    network = nn.Linear(3, 2)
    return network, torch.optim.Adam(network.parameters(), lr=0.1, fused=True)


def test_a_finite_step_is_the_optimizers_own() -> None:
    ours, theirs = make_pair(), make_pair()
    for n in range(3):
        for network, optimizer in (ours, theirs):
            optimizer.zero_grad()
            loss = network(torch.full((1, 3), n + 1.0)).square().sum()
            loss.backward()
            if network is ours[0]:
                assert all(guarded_step(optimizer, {"loss": loss}).values())
            else:
                optimizer.step()
    assert differences(ours[0].state_dict(), theirs[0].state_dict()) == []
    assert differences(ours[1].state_dict(), theirs[1].state_dict()) == []


@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_a_step_that_is_not_finite_changes_nothing(where: str) -> None:
    network, optimizer = make_pair()
    for bad in (False, True):
        optimizer.zero_grad()
        loss = network(torch.ones(1, 3)).square().sum()
        loss.backward()
        if bad and where == "gradient":
            assert network.weight.grad is not None
            network.weight.grad[1, 2] = math.inf
        before = copy.deepcopy((network.state_dict(), optimizer.state_dict()))
        finite = guarded_step(optimizer, {"loss": loss * (math.nan if bad and where == "loss" else 1)}, role="nets")
    assert {name: bool(value) for name, value in finite.items()} == {
        "loss": where != "loss",
        "the gradient of the nets": where != "gradient",
    }
    assert differences(before, (network.state_dict(), optimizer.state_dict())) == []


def test_gradients_are_clipped_to_the_norm() -> None:
    network, _ = make_pair()
    optimizer = torch.optim.SGD(network.parameters(), lr=1.0)
    before = [p.detach().clone() for p in network.parameters()]
    loss = 1000 * network(torch.ones(1, 3)).square().sum()
    loss.backward()
    guarded_step(optimizer, {"loss": loss}, gradient_clip=0.5)
    moved = torch.cat([(b - p.detach()).flatten() for b, p in zip(before, network.parameters(), strict=True)])
    assert float(moved.norm()) == pytest.approx(0.5, rel=1e-4)


def test_pools_keep_no_spoiled_image() -> None:
    pool = ImagePool(2, seed=0)
    good, bad = torch.ones(1, 1, 2, 2), torch.full((1, 1, 2, 2), math.nan)
    for image in (bad, good, bad, bad, bad, bad):
        pool.query(image)
    assert all(bool(torch.isfinite(image).all()) for image in pool.images)


def test_a_bad_step_is_left_out_and_its_case_named(experiment: Experiment, tmp_path: Path) -> None:
    weights: list[dict[str, Any]] = []

    class Keep:
        def attach(self, engine: Any) -> None:
            engine.add_event_handler(Events.ITERATION_COMPLETED, self)

        def __call__(self, engine: Any) -> None:
            weights.append(copy.deepcopy(engine.objective.networks.state_dict()))

    with pytest.warns(UserWarning, match="not finite"):
        result = factory.train(
            experiment, tmp_path / "run", device="cpu", handlers=[During(lambda n: n == 3, spoil_batch), Keep()]
        )
    assert result.step == 4
    assert differences(weights[1], weights[2]) == []
    assert len(differences(weights[2], weights[3])) > 10
    (row,) = guard_rows(result.run)
    prepared = factory.runs.open_prepared(Path(str(experiment.data.source)))
    training = factory.Training(
        config.load(result.run / "config.yaml"), prepared, tmp_path / "other", torch.device("cpu")
    )
    trainer = factory.make_trainer(training)
    assert (row["step"], row["guard"]) == ("3", "not finite")
    assert trainer.data_loader.dataset.describe(2) in row["saw"]
    assert "of a (axial slice" in row["saw"] and "of b (axial slice" in row["saw"]
    assert "left out" in row["did"] and "look at that volume" in row["remedy"]
    with (result.run / "metrics.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [r["steps_left_out"] for r in rows] == ["0", "0", "1", "1"]
    assert [math.isfinite(float(r["cycle_a"])) for r in rows] == [True, True, False, True]


def test_spoiled_weights_go_back_to_the_checkpoint(experiment: Experiment, tmp_path: Path) -> None:
    seen = {}

    def look(engine: Any) -> None:
        seen.update(copy.deepcopy(engine.objective.networks.state_dict()))

    with pytest.warns(UserWarning, match="went back to the checkpoint of step 2"):
        result = factory.train(
            experiment,
            tmp_path / "run",
            device="cpu",
            handlers=[During(lambda n: n == 3, spoil_weights), During(lambda n: n == 4, look)],
        )
    content = load_checkpoint(result.run)
    assert result.step == content["step"] == 4
    saved = factory.make_networks(config.load(result.run / "config.yaml"))
    for name, network in saved.items():
        network.load_state_dict(content["networks"][name])
    assert weights_are_finite(
        SimpleNamespace(objective=SimpleNamespace(networks=saved), ema=SimpleNamespace(averages={}))
    )
    assert len(differences(dict(saved.state_dict()), seen)) > 10  # step 4 was a real one
    assert content["companions"]["finite"]["rollbacks"] == 1


def test_what_does_not_recover_ends_with_the_case_named(experiment: Experiment, tmp_path: Path) -> None:
    with (
        pytest.warns(UserWarning, match="went back"),
        pytest.raises(
            InputError, match=r"diverged: .*cycle_a.* not finite at step 4, on case .* of a .*step 2 is whole"
        ),
    ):
        factory.train(experiment, tmp_path / "run", device="cpu", handlers=[During(lambda n: n >= 3, spoil_weights)])
    assert load_checkpoint(tmp_path / "run")["step"] == 2


def test_without_a_checkpoint_it_ends_at_once(experiment: Experiment, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there is no checkpoint to go back to"):
        factory.train(experiment, tmp_path / "run", device="cpu", handlers=[During(lambda n: n == 1, spoil_weights)])
    assert not (tmp_path / "run" / "checkpoint.pt").exists()


def test_ten_bad_steps_on_end_go_back_too_and_nine_do_not() -> None:
    """Bad steps with sound weights: nine, a good one, then ten across two looks."""
    heard: list[tuple[int, str, str]] = []
    returned: list[int] = []
    guard = FiniteGuard(
        every=5,
        checkpoint=lambda: {"step": 3},
        describe=lambda step: f"case of step {step}",
        report=lambda step, name, remark: heard.append((step, name, str(remark))),
    )
    network = nn.Linear(1, 1)
    engine = SimpleNamespace(
        state=SimpleNamespace(iteration=0, epoch_length=1000),
        objective=SimpleNamespace(networks=network),
        ema=SimpleNamespace(averages={}),
        roll_back=lambda saved: returned.append(engine.state.iteration),
    )
    for step, good in enumerate([True, *[False] * 9, True, *[False] * 10, True, True, True, True], start=1):
        engine.state.iteration = step
        engine.finite = {"cycle_a": torch.tensor(good), "cycle_b": torch.tensor(True)}
        guard(engine)
    # Looks at steps 5, 10, 15, 20 and 25; the ten are complete at step 21, where nobody looks until 25.
    assert [step for step, _, _ in heard] == [5, 10, 15, 20, 25]
    assert "cycle_a not finite at step 2, on case of step 2, and at 3 more of the last 5 steps" in heard[0][2]
    assert not returned and guard.skipped == 19
    for step in range(26, 41):
        engine.state.iteration = step
        engine.finite = {"cycle_a": torch.tensor(False)}
        guard(engine)
    assert returned == [35] and "10 bad steps came in a row" in heard[-2][2]


def test_flags_of_before_a_resumption_never_meet_tensors_of_another_device() -> None:
    heard: list[str] = []

    def made() -> FiniteGuard:
        report = lambda step, name, remark: heard.append(str(remark))  # noqa: E731
        return FiniteGuard(every=4, checkpoint=lambda: None, describe=str, report=report)

    network = nn.Linear(1, 1)
    engine = SimpleNamespace(
        state=SimpleNamespace(iteration=0, epoch_length=1000),
        objective=SimpleNamespace(networks=network),
        ema=SimpleNamespace(averages={}),
    )
    first = made()
    for step, good in ((1, False), (2, True)):
        engine.state.iteration = step
        engine.finite = {"cycle": torch.tensor(True), "of another process": torch.tensor(good)}
        first(engine)
    state = first.state_dict()
    assert not any(isinstance(flag, torch.Tensor) for *_, flags in state["pending"] for flag in flags)
    guard = made()
    guard.load_state_dict(state)
    assert not guard.pending and guard.state_dict() == state
    engine.state.iteration = 3  # and on a device that gives nothing away before it is asked to
    engine.finite = {"cycle": torch.empty((), dtype=torch.bool, device="meta")}
    guard(engine)
    assert {flags.device.type for *_, flags in guard.pending} == {"meta"}
    guard.pending.clear()
    engine.state.iteration, engine.finite = 4, {"cycle": torch.tensor(False)}
    guard(engine)
    assert guard.skipped == 2 and "of another process not finite at step 1" in heard[0]
    assert "and at 1 more" in heard[0] and not guard.resumed


def test_resuming_amid_bad_steps_is_exact(experiment: Experiment, tmp_path: Path) -> None:
    """Every schedule, guard and companion included: the snapshot holds all of it."""
    settings = {
        "log_every": 4,
        "validate_every": 1,
        "schedule": "plateau",
        "plateau_patience": 1,
        "learning_rate_discriminator": 1e-4,
        "gradient_clip": 1.0,
    }
    losses = {"adversarial": {"_target_": "wgan_gp", "lazy": 3}}
    content = experiment.to_dict()
    given = config.parse({**content, "training": {**content["training"], **settings}, "losses": losses}, "the test")
    spoil = During(lambda n: n == 2, spoil_batch)
    with pytest.warns(UserWarning, match="not finite"):
        whole = factory.train(given, tmp_path / "whole", device="cpu", handlers=[spoil])
        factory.train(given, tmp_path / "parts", device="cpu", handlers=[spoil, StopAt(2)])
        parts = factory.resume(tmp_path / "parts", device="cpu")
    a, b = load_checkpoint(whole.run), load_checkpoint(parts.run)
    assert a["companions"]["finite"]["skipped"] == 1
    assert differences(a, b) == []


@pytest.mark.parametrize(("loss", "value"), [(LSGAN(), 0.25), (BCE(), math.log(2)), (Hinge(), 2.0), (WGANGP(), None)])
def test_an_undecided_discriminators_loss(loss: Any, value: float | None) -> None:
    assert undecided_loss(loss) == (None if value is None else pytest.approx(value, abs=1e-6))


def test_saturation_is_told_once_and_again_after_recovery(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guards, "SATURATION_STEPS", 100)
    heard: list[tuple[int, str, str]] = []
    guard = SaturationGuard(0.25, lambda step, name, remark: heard.append((step, name, str(remark))))
    course = [0.2] * 3 + [0.004] * 4 + [0.1] + [0.0] * 2
    for n, loss in enumerate(course, start=1):
        guard.observe(50 * n, 50, {"discriminator_b": loss, "discriminator_a": 0.2, "cycle_a": 0.0})
    assert [(step, name) for step, name, _ in heard] == [(250, "saturation"), (500, "saturation")]
    assert "discriminator_b" in heard[0][2] and "learning_rate_discriminator" in heard[0][2]


def test_a_saturated_training_is_warned_of(
    experiment: Experiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guards, "SATURATION_STEPS", 3)

    def blind(engine: Any) -> None:
        engine.objective.adversarial.discriminator = lambda real, fake: 0.0 * (real.mean() + fake.mean())

    with pytest.warns(UserWarning, match=r"step 3: saturation: discriminator_a has been below 0\.005 for 3 steps"):
        result = factory.train(experiment, tmp_path / "run", device="cpu", handlers=[During(lambda n: True, blind)])
    assert [row["guard"] for row in guard_rows(result.run)] == ["saturation", "saturation"]


def test_a_collapsed_generator_is_warned_of_and_never_the_best(experiment: Experiment, tmp_path: Path) -> None:
    def flatten(engine: Any) -> None:
        for parameter in engine.objective.networks["gen_ab"].parameters():
            nn.init.zeros_(parameter)
        for parameter in engine.ema.averages["gen_ab"].parameters():
            nn.init.zeros_(parameter)

    with pytest.warns(UserWarning, match=r"step 4: collapse: translations ab of different patches differ by .* %"):
        result = factory.train(experiment, tmp_path / "run", device="cpu", handlers=[During(lambda n: True, flatten)])
    assert result.best is not None and result.best["step"] == 2  # the first sight alone is no proof


def test_spread_counts_the_inside_alone() -> None:
    random = torch.Generator().manual_seed(0)
    bodies = torch.rand(6, 1, 8, 8, generator=random) > 0.3
    inputs = torch.where(bodies, torch.randn(6, 1, 8, 8, generator=random), torch.tensor(-1.0))
    assert spread_ratio(inputs, inputs, bodies) == pytest.approx(1)
    assert spread_ratio(inputs / 4, inputs, bodies) == pytest.approx(0.25, rel=1e-4)
    assert spread_ratio(torch.where(bodies, 0.2, -1.0), inputs, bodies) == pytest.approx(0, abs=1e-6)


@pytest.fixture(scope="module")
def probe(prepared: PreparedCohort) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    shape = PatchSpec((48, 48))
    return {group: probe_patches(prepared.cases[group], shape) for group in ("a", "b", "pairs_a", "pairs_b")}


@pytest.mark.parametrize("turned", [False, True])
def test_an_inverted_ct_is_told_from_the_right_one(probe: Any, turned: bool) -> None:
    """The true CT of a patient who is in neither domain, and the same with bright and dark swapped inside the body."""
    heard: list[tuple[int, str, str]] = []
    real = {"a": probe["pairs_a"][0], "b": probe["b"][0]}
    bodies = {"a": probe["pairs_a"][1], "b": probe["b"][1]}
    guard = TranslationGuards(Probe(real, bodies), lambda step, name, remark: heard.append((step, name, str(remark))))
    truth, body = probe["pairs_b"][0], probe["pairs_a"][1]
    shown = torch.where(body, -0.9 - truth, truth) if turned else truth
    measured = guard.observe(100, {"b": shown})
    assert not heard and not guard.raised
    guard.observe(200, {"b": shown})
    assert guard.raised == turned
    assert [name for _, name, _ in heard] == (["inversion"] if turned else [])
    assert (measured["order_ab"] < -0.5) if turned else (measured["order_ab"] > 0.5)
    if turned:
        assert "mr_inverted" in heard[0][2] and "No checkpoint" in heard[0][2]
        guard.observe(300, {"b": truth})
        assert not guard.raised


def test_no_order_is_expected_where_real_images_show_none() -> None:
    """A checkerboard is as bright in every shell; nothing can be inverted, and nothing is said."""
    row = torch.arange(32)
    real = ((row[:, None] + row) % 2).float().expand(4, 1, 32, 32) - 0.5
    body = torch.ones(4, 1, 32, 32, dtype=torch.bool)
    guard = TranslationGuards(Probe({"a": real, "b": real}, {"a": body, "b": body}), guards.silent)
    assert guard.ordered == {"a": False, "b": False}
    assert "order_ab" not in guard.observe(1, {"b": -real})


@pytest.mark.slow
def test_an_ordinary_training_alarms_nobody(
    experiment: Experiment, tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    content = experiment.to_dict()
    content["model"]["generator"] = {"_target_": "attention_unet", "filters": 8, "depth": 2, "gates": False}
    content["training"] |= {"steps": 80, "log_every": 20, "picture_every": 20, "checkpoint_every": 80}
    content["training"] |= {"learning_rate": 1e-3, "ema_decay": 0.9}
    result = factory.train(config.parse(content, "the test"), tmp_path / "run", device="cpu")
    assert not (result.run / "guards.csv").exists()
    assert not [str(w.message) for w in recwarn if str(w.message).startswith("step ")]
