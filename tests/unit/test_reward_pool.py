"""A reward with a fleet of its own: rows keep their order and nobody's loss becomes a number."""

import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from reward_servers.base import Failure, Outcome, checked_scores
from reward_servers.breaker import RewardDownError
from reward_servers.pool import (
    MemberLostError,
    PooledReward,
    RewardWorker,
    UnavailableError,
)
from reward_servers.timed import StalledError

PROMPTS = [f"prompt {i}" for i in range(7)]
Answer = Callable[[np.ndarray], list[Outcome]]


def pictures(count: int = len(PROMPTS)) -> np.ndarray:
    """Each of one grey, which is its number."""
    return np.arange(count, dtype=np.uint8).repeat(12).reshape(count, 2, 2, 3)


def greys(images_BHWC: np.ndarray) -> list[Outcome]:
    return [float(each) for each in images_BHWC[:, 0, 0, 0]]


class Some:
    """Members that answer as they are told to."""

    def __init__(self, **answers: Answer) -> None:
        self.answers = answers
        self.asked: list[tuple[str, int]] = []

    def names(self) -> Sequence[str]:
        return sorted(self.answers)

    def score(
        self, name: str, images_BHWC: np.ndarray, prompts: Sequence[str], timeout_s: float
    ) -> list[Outcome]:
        self.asked.append((name, len(prompts)))
        return self.answers[name](images_BHWC)


def lost(images_BHWC: np.ndarray) -> list[Outcome]:
    raise MemberLostError("it was lost")


def shut(images_BHWC: np.ndarray) -> list[Outcome]:
    raise UnavailableError("it is being built")


def scored(members: Some, timeout_s: float = 20.0) -> list[Outcome]:
    """As a reward server asks."""
    return checked_scores(PooledReward("grey", members, timeout_s=timeout_s), pictures(), PROMPTS)


def test_rows_are_cut_evenly_among_members_and_keep_their_order() -> None:
    members = Some(a=greys, b=greys, c=greys)
    assert scored(members) == greys(pictures())
    assert sorted(rows for _, rows in members.asked) == [2, 2, 3]


def test_one_part_goes_to_each_of_those_that_are_idle() -> None:
    together = threading.Barrier(3, timeout=20)

    def answer(images_BHWC: np.ndarray) -> list[Outcome]:
        together.wait()  # which needs all three at the same time
        return greys(images_BHWC)

    members = Some(a=answer, b=answer, c=answer)
    assert scored(members) == greys(pictures())
    assert sorted(name for name, _ in members.asked) == ["a", "b", "c"]


def test_a_lost_members_rows_are_scored_by_another() -> None:
    members = Some(a=lost, b=greys)
    assert scored(members) == greys(pictures())
    assert ("a", 3) in members.asked


def test_pictures_that_end_whoever_scores_them_are_given_up_with_the_reason() -> None:
    members = Some(a=lost, b=lost)
    outcomes = scored(members)
    assert outcomes == [Failure("MemberLostError: it was lost")] * len(PROMPTS)
    assert len(members.asked) <= 6  # three of either part, and no row by itself


def test_a_failed_row_stays_failed_and_fails_no_other() -> None:
    def one_bad(images_BHWC: np.ndarray) -> list[Outcome]:
        return [Failure("too dark") if value == 0 else value for value in greys(images_BHWC)]

    outcomes = scored(Some(a=one_bad, b=one_bad))
    assert outcomes == [Failure("too dark"), *greys(pictures())[1:]]


def failing(images_BHWC: np.ndarray) -> list[Outcome]:
    return [Failure("out of memory")] * len(images_BHWC)


def hanging(images_BHWC: np.ndarray) -> list[Outcome]:
    raise TimeoutError("it does not answer")


def one_by_one(members: Some, *, count: int) -> list[Outcome]:
    """As a server asks that finds one record at a time."""
    reward = PooledReward("grey", members, timeout_s=20)
    return [checked_scores(reward, pictures(1), PROMPTS[:1])[0] for _ in range(count)]


@pytest.mark.parametrize("names", ["abcd", "dcba"])
def test_a_member_that_fails_all_costs_no_row_its_score(names: str) -> None:
    broken, *healthy = names
    members = Some(**{broken: failing, **dict.fromkeys(healthy, greys)})
    assert scored(members) == greys(pictures())
    assert one_by_one(members, count=60) == [0.0] * 60
    asked = Counter(name for name, _ in members.asked)
    assert asked[broken] < min(asked[name] for name in healthy)


def test_a_member_that_does_not_answer_costs_the_part_that_it_was_handed_alone() -> None:
    members = Some(a=hanging, b=greys, c=greys)
    outcomes = one_by_one(members, count=40)
    assert outcomes.count(Failure("TimeoutError: it does not answer")) == 1
    assert outcomes.count(0.0) == 39


def test_rows_that_every_member_fails_are_asked_of_two() -> None:
    members = Some(a=failing, b=failing, c=failing)
    assert one_by_one(members, count=4) == [Failure("out of memory")] * 4
    assert len(members.asked) == 8
    alone = Some(a=failing)
    one_by_one(alone, count=4)
    assert len(alone.asked) == 4


def test_a_member_that_has_been_mended_is_asked_again() -> None:
    members = Some(a=failing, b=greys)
    reward = PooledReward("grey", members, timeout_s=20)
    checked_scores(reward, pictures(), PROMPTS)
    members.answers["a"] = greys
    members.asked.clear()
    until = time.monotonic() + 20
    while "a" not in dict(members.asked) and time.monotonic() < until:
        checked_scores(reward, pictures(1), PROMPTS[:1])
        time.sleep(0.05)
    assert "a" in dict(members.asked)


def test_where_nobody_is_there_in_time_every_row_fails_and_says_where_to_look() -> None:
    outcomes = scored(Some(a=shut), timeout_s=0.2)
    assert len(outcomes) == len(PROMPTS)
    for outcome in outcomes:
        assert isinstance(outcome, Failure)
        assert "no server of reward 'grey' answered in time" in outcome.reason
        assert "rewards.grey" in outcome.reason


def test_a_member_that_is_being_built_is_waited_for() -> None:
    built = time.monotonic() + 0.3

    def answer(images_BHWC: np.ndarray) -> list[Outcome]:
        return greys(images_BHWC) if time.monotonic() > built else shut(images_BHWC)

    members = Some(a=answer)
    PooledReward("grey", members, timeout_s=20).wait(20)
    assert time.monotonic() > built
    assert {rows for _, rows in members.asked} == {0}
    with pytest.raises(TimeoutError, match="no server of reward 'grey'"):
        PooledReward("grey", Some(), timeout_s=20).wait(0.1)


def test_an_answer_of_another_length_fails_its_rows() -> None:
    outcomes = scored(Some(a=lambda images_BHWC: [1.0]))
    assert outcomes == [Failure("ValueError: a gave 1 outcomes of 7 pictures")] * len(PROMPTS)


class Slow:
    """Tells that it began, and ends when it may."""

    def __init__(self) -> None:
        self.began = threading.Event()
        self.may_end = threading.Event()

    def score(self, images_BHWC: np.ndarray, prompts: Sequence[str]) -> np.ndarray:
        self.began.set()
        self.may_end.wait(20)
        return images_BHWC[:, 0, 0, 0].astype(np.float32)


def test_a_worker_that_is_stopped_ends_its_batch_and_takes_no_other() -> None:
    model = Slow()
    worker = RewardWorker(model, name="grey", owner="reward-grey-0.0", timeout_s=20)
    with ThreadPoolExecutor(2) as threads:
        running = threads.submit(worker.run)
        batch = threads.submit(worker.score, pictures(), PROMPTS)
        assert model.began.wait(20)
        worker.stop()
        time.sleep(0.05)
        assert not running.done()
        model.may_end.set()
        assert batch.result(20) == greys(pictures())
        running.result(20)
    with pytest.raises(UnavailableError, match=r"reward-grey-0\.0 is ending"):
        worker.score(pictures(), PROMPTS)
    stats = worker.stats()
    assert (stats["images"], stats["failures"]) == (len(PROMPTS), 0)


def test_a_worker_whose_calls_never_return_ends_itself() -> None:
    model = Slow()
    worker = RewardWorker(model, name="grey", owner="reward-grey-0.0", timeout_s=0.05)
    outcomes = [worker.score(pictures(1), PROMPTS[:1]) for _ in range(3)]
    assert outcomes == [[Failure("timed out after 0.05 s")]] * 3
    with pytest.raises(StalledError, match="3 calls of reward 'grey' have not returned"):
        worker.run()
    model.may_end.set()


class Failing:
    """Raises what it is told to."""

    def __init__(self, text: str) -> None:
        self.text = text

    def score(self, images_BHWC: np.ndarray, prompts: Sequence[str]) -> np.ndarray:
        raise RuntimeError(self.text)


ILLEGAL = "CUDA error: an illegal memory access was encountered"


def failing_worker(text: str, *, has_gpu: bool) -> RewardWorker:
    owner = "reward-grey-0.0"
    return RewardWorker(Failing(text), name="grey", owner=owner, timeout_s=20, has_gpu=has_gpu)


def test_a_worker_that_has_lost_its_gpu_ends_itself_and_takes_no_more() -> None:
    worker = failing_worker(ILLEGAL, has_gpu=True)
    with pytest.raises(MemberLostError, match=r"reward-grey-0\.0 ends: .*illegal memory access"):
        worker.score(pictures(), PROMPTS)
    with pytest.raises(UnavailableError):
        worker.score(pictures(), PROMPTS)
    with pytest.raises(RewardDownError, match=r"a new process is needed: .*illegal memory access"):
        worker.run()


@pytest.mark.parametrize(
    ("text", "has_gpu"), [("CUDA error: out of memory", True), (ILLEGAL, False)]
)
def test_a_worker_whose_gpu_is_not_lost_fails_its_rows_alone(text: str, has_gpu: bool) -> None:
    worker = failing_worker(text, has_gpu=has_gpu)
    for _ in range(2):
        assert worker.score(pictures(), PROMPTS) == [Failure(f"RuntimeError: {text}")] * 7


def test_the_rows_of_a_member_that_lost_its_gpu_are_scored_by_another() -> None:
    worker = failing_worker(ILLEGAL, has_gpu=True)
    members = Some(
        a=lambda images_BHWC: worker.score(images_BHWC, [""] * len(images_BHWC)), b=greys
    )
    assert scored(members) == greys(pictures())
