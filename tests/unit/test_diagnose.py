"""The command that measures what a policy gradient has to go by, on tiny models."""

import json
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from deploy.diagnose import Subject, diagnose, main
from deploy.settings.run_config import load_config
from learner.diagnostics import calls
from learner.diffusion.consistency import consistency_prediction
from learner.diffusion.noise import INITIAL_NOISE

SMALL = ["--prompts", "2", "--draws", "8", "--batch", "4"]


def measured(pipelines: Path, tmp_path: Path, *flags: str) -> dict[str, list]:
    config = ["deploy/configs/smoke.yaml", f"model.path={pipelines}/lcm"]
    config += [f"model.teacher={pipelines}/base", "rewards.binding.kind=jpeg-size"]
    assert main([*config, *SMALL, "--out", str(tmp_path), *flags]) == 0
    return json.loads((tmp_path / "diagnosis.json").read_text())


@pytest.mark.slow
def test_every_number_of_steps_has_its_row(
    pipelines: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    told = measured(pipelines, tmp_path, "--steps", "1", "2", "4")
    one, two, four = told["measured"]
    assert (told["asked"]["draws"], told["asked"]["batch"]) == (8, 4)
    assert (one["rho2"], one["snr"], one["made_up"]) == (None, None, None)
    assert one["pathwise_shares"] == [1.0]
    assert two["policy_signals"][1] == [0, 0]  # the last call has no likelihood
    assert two["snr"] == two["first_snr"]  # there is one action
    assert four["snr"] != four["first_snr"]
    assert len(four["policy_signals"]) == 4
    assert two["made_up"][1] > 0
    assert sum(four["pathwise_shares"]) == pytest.approx(1)
    assert one["spread"][0] == pytest.approx(0)
    assert two["spread"][0] > 0
    assert min(two["gains"]) > 0
    shown = capsys.readouterr().out.splitlines()
    assert shown[0].startswith("| steps | rho |")
    assert len(shown) == 5


def test_one_that_was_ended_goes_on(pipelines: Path, tmp_path: Path) -> None:
    told = measured(pipelines, tmp_path, "--steps", "1")
    told["measured"][0]["dims"] = 12345  # as nothing measures it
    (tmp_path / "diagnosis.json").write_text(json.dumps(told))
    gone_on = measured(pipelines, tmp_path, "--steps", "1", "2")
    assert [each["steps"] for each in gone_on["measured"]] == gone_on["asked"]["steps"] == [1, 2]
    assert gone_on["measured"][0]["dims"] == 12345
    assert gone_on["measured"][1]["dims"] != 12345
    others = measured(pipelines, tmp_path, "--steps", "1", "--draws", "10")
    assert others["measured"][0]["dims"] != 12345


def test_a_reward_that_is_the_same_of_all_pictures_tells_nothing(
    pipelines: Path, tmp_path: Path
) -> None:
    two = measured(pipelines, tmp_path, "rewards.binding.kind=shapes-exact", "--steps", "2")
    (told,) = two["measured"]
    assert (told["alike"], told["policy_shares"]) == (2, [0.0, 0.0])
    assert told["noise_snr"] == told["first_snr"] == told["snr"] == [0.0, 0.0, 0.0]
    assert told["made_up"] == [0.0, 0.0]


@pytest.mark.slow
def test_batches_change_nothing(pipelines: Path, tmp_path: Path) -> None:
    whole = measured(pipelines, tmp_path, "--steps", "2", "--batch", "8")["measured"][0]
    parts = measured(pipelines, tmp_path, "--steps", "2", "--batch", "3")["measured"][0]
    assert parts["noise_snr"] == pytest.approx(whole["noise_snr"], rel=1e-3)
    assert parts["rho2"] == pytest.approx(whole["rho2"], rel=1e-3)
    assert parts["spread"] == pytest.approx(whole["spread"], rel=1e-3)


def test_a_wrong_config_and_a_model_of_many_steps_are_refused(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["deploy/configs/smoke.yaml", "model.steps=2"]) == 2
    assert "model.steps" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["deploy/configs/smoke-sqdf.yaml"])
    assert "give one of few" in capsys.readouterr().err


def test_a_reward_that_fails_is_told_and_nothing_is_written(
    pipelines: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = ["deploy/configs/smoke.yaml", f"model.path={pipelines}/lcm"]
    config += [f"model.teacher={pipelines}/base"]
    config += ["rewards.binding.kind=tests.isolated_rewards:Partial", "replay.max_attempts=1"]
    assert main([*config, *SMALL, "--steps", "2", "--out", str(tmp_path / "out")]) == 1
    assert "the reward binding failed: not this one" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_the_signal_of_all_actions_is_that_of_each_picture_s_own_gradient(
    pipelines: Path,
) -> None:
    """Against torch's own densities, picture by picture, of an unbiased estimate by hand."""
    config = load_config(
        "deploy/configs/smoke.yaml",
        [
            f"model.path={pipelines}/lcm",
            f"model.teacher={pipelines}/base",
            "rewards.binding.kind=jpeg-size",
        ],
    )
    subject = Subject(config, prompts=2, draws=4, batch=1)
    signals, powers = [], []
    for number, prompt in enumerate(subject.prompts):
        ask = subject.ask(prompt)
        initial = subject.noise(number, INITIAL_NOISE, shared=True)
        injected = [subject.noise(number, INITIAL_NOISE + 1 + k) for k in range(3)]
        with torch.no_grad():
            chain = calls(ask, subject.schedule, initial, injected)
        reward_M = subject.rewards(chain[-1].clean, prompt)
        advantage_M = (reward_M - reward_M.mean()) / reward_M.std(correction=0)
        of_pictures = []
        for m in range(4):
            log_density = torch.zeros((), dtype=torch.float64)
            for before, after in pairwise(chain):
                x, t_B = before.x[m : m + 1], before.t_B[m : m + 1]
                clean = consistency_prediction(x, ask(x, t_B), t_B, subject.schedule)
                alpha, sigma = subject.schedule.alpha_sigma(after.t_B[m : m + 1], x)
                density = torch.distributions.Normal(alpha * clean, sigma)
                log_density = log_density + density.log_prob(after.x[m : m + 1]).double().sum()
            gradient = torch.autograd.grad(advantage_M[m] * log_density, subject.weights)
            of_pictures.append(torch.cat([part.flatten() for part in gradient]).double())
        product = torch.stack(of_pictures) @ torch.stack(of_pictures).T
        signals.append(float((product.sum() - product.trace()) / 12))
        powers.append(float(product.trace() / 4))
    told = diagnose(subject, 4)
    signal, power = sum(signals) / 2, sum(powers) / 2
    expected = (max(signal, 0.0) / (power - signal)) ** 0.5
    assert told.snr is not None
    assert told.snr[0] == pytest.approx(expected, rel=1e-3)
    assert expected > 0
