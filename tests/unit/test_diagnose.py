"""The command that measures what a policy gradient has to go by, on tiny models."""

import json
from pathlib import Path

import pytest

from deploy.diagnose import main

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
    assert (one["rho2"], one["snr"], one["made_up"], one["pathwise_shares"]) == (
        None,
        None,
        {},
        [1.0],
    )
    assert two["policy_signals"][1] == 0  # the last call has no likelihood
    assert len(four["policy_signals"]) == 4
    assert two["made_up"]["power"] > 0
    assert sum(four["pathwise_shares"]) == pytest.approx(1)
    assert one["spread"][0] == pytest.approx(0)
    assert two["spread"][0] > 0
    assert two["gain"][0] > 0
    shown = capsys.readouterr().out.splitlines()
    assert shown[0].startswith("| steps | rho |")
    assert len(shown) == 5


def test_a_reward_that_is_the_same_of_all_pictures_tells_nothing(
    pipelines: Path, tmp_path: Path
) -> None:
    two = measured(pipelines, tmp_path, "rewards.binding.kind=shapes-exact", "--steps", "2")
    (told,) = two["measured"]
    assert (told["alike"], told["policy_shares"]) == (2, [0.0, 0.0])
    assert told["first_snr"] == told["snr"] == [0.0, 0.0, 0.0]
    assert two["rows"][1][5] == "0%"


@pytest.mark.slow
def test_batches_change_nothing(pipelines: Path, tmp_path: Path) -> None:
    whole = measured(pipelines, tmp_path, "--steps", "2", "--batch", "8")["measured"][0]
    parts = measured(pipelines, tmp_path, "--steps", "2", "--batch", "3")["measured"][0]
    assert parts["policy_signals"] == pytest.approx(whole["policy_signals"], rel=1e-3)
    assert parts["first_snr"] == pytest.approx(whole["first_snr"], rel=1e-3)


def test_a_wrong_config_and_a_model_of_many_steps_are_refused(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["deploy/configs/smoke.yaml", "model.steps=2"]) == 2
    assert "model.steps" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["deploy/configs/smoke-sqdf.yaml"])
    assert "give one of few" in capsys.readouterr().err
