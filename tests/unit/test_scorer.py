"""From records to scores, where a decoder has no room for all of them at once."""

import weakref
from collections.abc import Sequence

import numpy as np

from reward_servers.base import Failure
from reward_servers.scorer import Scorer
from tests.unit.reward_server_fakes import Brightness, Doing, decode, record


class SmallGpu:
    """A decoder with room for what one picture needs, as long as nothing else is held."""

    def __init__(self) -> None:
        self.held: list[weakref.ref[np.ndarray]] = []

    def __call__(self, latents_BCHW: np.ndarray) -> np.ndarray:
        activations = np.zeros(len(latents_BCHW))
        if len(latents_BCHW) > 1 or any(ref() is not None for ref in self.held):
            self.held.append(weakref.ref(activations))
            raise MemoryError(f"out of memory for {len(activations)} pictures")
        return decode(latents_BCHW)


def test_what_a_failed_batch_held_is_free_when_its_records_come_one_by_one() -> None:
    scorer = Scorer(SmallGpu(), {"brightness": Brightness()}, timeout_s=5, called=lambda *_: None)
    found = scorer.decoded([record(number, scored=(1,)) for number in range(3)])
    scorer.close()
    assert not any(isinstance(each, Failure) for each in found)


def test_no_reward_changes_what_another_sees() -> None:
    def darkens(images_BHWC: np.ndarray, prompts: Sequence[str]) -> np.ndarray:
        images_BHWC[:] = 0
        return np.zeros(len(prompts), np.float32)

    rewards = {"darkens": Doing(darkens), "light": Brightness()}
    scorer = Scorer(decode, rewards, timeout_s=5, called=lambda *_: None)
    records = [record(number, scored=(1,)) for number in range(2)]
    outcomes = scorer.outcomes(records, scorer.decoded(records))
    scorer.close()
    assert [type(outcome) for outcome in outcomes] == [Failure] * 2
    assert "darkens of step 2: ValueError: assignment destination is read-only" in str(outcomes[0])
