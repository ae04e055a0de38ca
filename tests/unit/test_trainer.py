"""A trainer that is stopped in the middle of a cycle: what it saves, and where the next goes on."""

import logging
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from learner import checkpoint
from learner.journal import Journal
from learner.trainer import Trainer
from learner.waits import StallError, StoppedError

CYCLES = 5


class Counting:
    """A method that counts its steps.

    Args:
        at: called with the part of a cycle that begins, `improve` or its `wait`, and its number;
            after a `breath` in the preparation; and with `save` and the cycles behind a checkpoint
            while it is written.
    """

    cycles = CYCLES

    def __init__(self, at: Callable[[str, int], None]) -> None:
        self.journal = Journal()
        self.prepared = False
        self.steps = {"policy": 0, "surrogate": 0}
        self.improved: list[int] = []
        self._at = at

    def prepare(self, breathe: Callable[[], None]) -> None:
        self._at("wait", -1)
        breathe()
        self._at("breath", -1)
        self.prepared = True

    def improve(self, cycle: int) -> None:
        self._at("improve", cycle)
        self.improved.append(cycle)
        self.steps["policy"] += 1
        self.journal.record("policy", cycle, {"loss": float(cycle)})

    def adapt(self, cycle: int, *, last: bool) -> None:
        self._at("wait", cycle)
        self.steps["surrogate"] += 1
        self.journal.record("fresh", cycle, {"reward": float(cycle)})

    def weights(self) -> dict[str, Any]:
        return {}

    final_weights = weights

    def save(self, folder: Path) -> None:
        """All fits JSON."""
        self._at("save", self.steps["surrogate"])

    def load(self, folder: Path, state: dict[str, Any]) -> None:
        self.prepared, self.steps = True, state

    def state(self) -> dict[str, Any]:
        return dict(self.steps)


class Life:
    """One start of a trainer whose checkpoints are further apart than its cycles."""

    def __init__(self, folder: Path, *, resume: bool = False, rank: int = 0) -> None:
        self.folder = folder
        self.rank = rank
        self.stopping = threading.Event()
        self.published: list[int] = []
        self.then: dict[tuple[str, int], Callable[[], None]] = {}
        self.method = Counting(lambda *part: self.then.get(part, lambda: None)())
        self._resume = resume

    def run(self) -> bool:
        return Trainer(
            self.method,
            lambda version, weights: self.published.append(version),
            folder=self.folder,
            rank=self.rank,
            resume=self._resume,
            every=100,
            keep=2,
            stopping=self.stopping,
        ).run()


def stop() -> None:
    raise StoppedError("stopped while waiting")


def stall() -> None:
    raise StallError("nothing came")


def told(life: Life) -> list[tuple[str, int]]:
    return [(row["phase"], row["step"]) for row in life.method.journal.drain()]


def test_a_stop_in_a_wait_for_samples_loses_no_step(tmp_path: Path) -> None:
    first = Life(tmp_path)
    first.then["wait", 2] = stop
    assert not first.run()
    second = Life(tmp_path, resume=True)
    assert second.run()
    assert (first.method.improved, second.method.improved) == ([0, 1, 2], [3, 4])
    assert second.method.steps == {"policy": CYCLES, "surrogate": CYCLES}
    assert second.published == [3, 4, 5, 6]


def test_what_was_told_of_half_a_cycle_is_told_again(tmp_path: Path) -> None:
    first = Life(tmp_path)
    first.then["wait", 2] = stop
    first.run()
    assert told(first)[-1] == ("policy", 2)
    second = Life(tmp_path, resume=True)
    second.then["wait", 2] = stop
    second.run()
    assert told(second) == [("policy", 2)]
    third = Life(tmp_path, resume=True)
    third.run()
    assert told(third)[:3] == [("policy", 2), ("fresh", 2), ("policy", 3)]


def test_a_wait_without_an_end_fails_and_loses_no_step(tmp_path: Path) -> None:
    first = Life(tmp_path)
    first.then["wait", 2] = stall
    with pytest.raises(StallError):
        first.run()
    second = Life(tmp_path, resume=True)
    second.run()
    assert second.method.improved == [3, 4]


def test_a_stop_between_policy_steps_and_the_rest_is_heeded_there(tmp_path: Path) -> None:
    life = Life(tmp_path)
    life.then["wait", 1] = life.stopping.set
    assert not life.run()
    assert life.method.steps == {"policy": 2, "surrogate": 2}
    resumed = Life(tmp_path, resume=True)
    resumed.then["improve", 2] = resumed.stopping.set
    assert not resumed.run()
    assert resumed.method.steps == {"policy": 3, "surrogate": 2}


def test_a_stop_in_the_last_cycle_lets_it_end(tmp_path: Path) -> None:
    life = Life(tmp_path)
    life.then["improve", CYCLES - 1] = life.stopping.set
    assert life.run()


def test_what_is_saved_already_is_not_saved_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = Life(tmp_path)
    first.then["wait", 2] = stop
    first.run()
    written: list[object] = []
    monkeypatch.setattr(checkpoint, "write", lambda *args, **options: written.append(args))
    second = Life(tmp_path, resume=True)
    second.stopping.set()
    assert not second.run()
    assert written == []


@pytest.mark.parametrize(("every_s", "names"), [(0.0, ["00000000"]), (1e9, [])])
def test_a_long_preparation_leaves_a_checkpoint_now_and_then(
    every_s: float, names: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("learner.trainer._PREPARE_EVERY_S", every_s)
    found: list[str] = []
    life = Life(tmp_path)
    life.then["breath", -1] = lambda: found.extend(
        path.name for path in (tmp_path / "checkpoints").glob("*")
    )
    life.run()
    assert found == names


def refuse(error: Exception) -> Callable[[], None]:
    def act() -> None:
        raise error

    return act


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError(28, "No space left on device"), "OSError: [Errno 28] No space left on device"),
        (
            RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 64\nframe #0"),
            "RuntimeError: [enforce fail at inline_container.cc:672] . unexpected pos 64",
        ),
    ],
)
def test_a_checkpoint_that_finds_no_room_says_so_and_where_resuming_goes_on(
    error: Exception, said: str, tmp_path: Path
) -> None:
    first = Life(tmp_path)
    first.then["save", CYCLES] = refuse(error)
    with pytest.raises(OSError, match="cannot be written") as caught:
        first.run()
    assert str(caught.value) == (
        f"a checkpoint cannot be written to {tmp_path / 'checkpoints'}: {said}; "
        "resume continues after 0 whole cycles"
    )


def test_a_checkpoint_that_finds_no_room_gives_back_what_it_took(tmp_path: Path) -> None:
    life = Life(tmp_path)
    life.then["save", CYCLES] = refuse(OSError(28, "No space left on device"))
    with pytest.raises(OSError, match="cannot be written"):
        life.run()
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["00000000"]


def test_a_rank_that_is_lost_between_shares_is_not_taken_for_a_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lose_peer() -> None:
        raise RuntimeError("Connection closed by peer")

    monkeypatch.setattr("learner.trainer.barrier", lose_peer)
    with pytest.raises(RuntimeError, match=r"^Connection closed by peer$"):
        Life(tmp_path).run()


def test_a_run_goes_on_from_before_a_checkpoint_that_found_no_room(tmp_path: Path) -> None:
    first = Life(tmp_path)
    first.then["wait", 2] = stop
    first.run()
    second = Life(tmp_path, resume=True)
    second.then["save", CYCLES] = refuse(OSError(28, "No space left on device"))
    with pytest.raises(OSError, match="cycles, and after the policy steps of cycle 2"):
        second.run()
    third = Life(tmp_path, resume=True)
    assert third.run()
    assert third.method.improved == [3, 4]
    assert {path.name for path in (tmp_path / "checkpoints").iterdir()} == {
        "00000002-midway",
        "00000005",
    }


@pytest.mark.parametrize(
    ("waits_in", "where"),
    [
        (-1, "there is no checkpoint yet: resume begins anew"),
        (2, "resume continues after 2 whole cycles, and after the policy steps of cycle 2"),
    ],
)
def test_the_log_says_where_resuming_goes_on(
    waits_in: int, where: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    life = Life(tmp_path)
    life.then["wait", waits_in] = stop
    with caplog.at_level(logging.INFO):
        life.run()
    assert where in caplog.text


def test_another_rank_resumes_from_what_the_first_has_chosen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = Life(tmp_path)
    first.then["wait", 2] = stop
    assert not first.run()
    asked: list[int] = []
    chosen = {-1: 2, 0: 1}  # after two cycles and, midway, the steps of one more

    def of_first(number: int) -> int:
        asked.append(number)
        return chosen[number]

    monkeypatch.setattr("learner.trainer.of_first", of_first)
    second = Life(tmp_path, resume=True, rank=1)
    second.then["wait", 3] = stop
    assert not second.run()
    assert second.method.improved == [3]
    assert asked == [-1, 0]  # it looks for none itself
    chosen[-1] = 4
    with pytest.raises(
        ValueError, match=r"on rank 1, there is no checkpoint .*00000004-midway, fr"
    ):
        Life(tmp_path, resume=True, rank=1).run()
