"""An evaluator that dies or hangs, in a real local Ray: later evaluations are made all the same."""

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import ray

from deploy.evaluation.handle import EvaluatorHandle
from deploy.run.ranks import RunFailedError
from deploy.run.shared_folder import SharedFolder
from deploy.settings.run_config import load_config
from tests.services import fleet_world

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("cluster")]
cluster = fleet_world.cluster


class Fragile:
    """Dies or hangs in an evaluation, as a file of that name says, once."""

    def __init__(self, config: Any, folder: SharedFolder) -> None:
        self._is_lost = False

    def check_folder(self) -> None:
        pass

    def evaluate_newest(
        self, board: Any, at_least: int, folder: Path, *, keep: bool
    ) -> tuple[int, dict[str, float]]:
        for how in ("dies", "hangs", "loses its GPU"):
            marker = folder / f"{how} {at_least}"
            if marker.exists():
                marker.unlink()
                if how == "dies":
                    os._exit(1)
                elif how == "hangs":
                    time.sleep(600)
                self._is_lost = True
        if self._is_lost:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")
        return at_least, {}


@pytest.fixture
def new_handle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., EvaluatorHandle]]:
    made: list[EvaluatorHandle] = []

    def make(timeout_s: float = 120.0) -> EvaluatorHandle:
        values = ["name=fragile", f"evaluation.timeout_s={timeout_s}"]
        config = load_config("deploy/configs/smoke.yaml", values)
        made.append(EvaluatorHandle(config, SharedFolder(tmp_path, "start")))
        return made[-1]

    monkeypatch.setattr("deploy.evaluation.handle.EvaluatorHost", Fragile)
    yield make
    for handle in made:
        ray.kill(handle._actor)


def test_an_evaluator_may_die_in_any_number_of_evaluations(
    new_handle: Callable[..., EvaluatorHandle], tmp_path: Path
) -> None:
    handle = new_handle()
    for cycle in range(1, 8):
        if cycle < 7:
            (tmp_path / f"dies {cycle}").touch()
        answer = handle.result(handle.measure_newest(None, cycle, keep=False))
        assert answer == (cycle, {})


def test_an_evaluator_that_hangs_is_late_and_replaced(
    new_handle: Callable[..., EvaluatorHandle], tmp_path: Path
) -> None:
    handle = new_handle()
    handle.result(handle.measure_newest(None, 1, keep=False))
    handle._timeout_s = 1.0
    (tmp_path / "hangs 2").touch()
    hanging = handle.measure_newest(None, 2, keep=False)
    assert not handle.is_late()
    time.sleep(1.5)
    assert (handle.is_ready(hanging), handle.is_late()) == (False, True)
    with pytest.raises(RunFailedError, match=r"longer than evaluation\.timeout_s"):
        handle.result(hanging)
    handle._timeout_s = 120.0
    assert handle.result(handle.measure_newest(None, 3, keep=False)) == (3, {})


def test_an_evaluator_that_has_lost_its_gpu_is_replaced(
    new_handle: Callable[..., EvaluatorHandle], tmp_path: Path
) -> None:
    handle = new_handle()
    (tmp_path / "loses its GPU 1").touch()
    with pytest.raises(RunFailedError, match="illegal memory access"):
        handle.result(handle.measure_newest(None, 1, keep=False))
    assert handle.result(handle.measure_newest(None, 2, keep=False)) == (2, {})
