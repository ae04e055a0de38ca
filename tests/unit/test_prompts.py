"""Tickets to prompts and seeds."""

import pytest

from actors.prompts import PromptSource, seed_of

PROMPTS = [f"prompt {i}" for i in range(20)]
GOLDEN_PROMPTS = ["prompt 17", "prompt 5", "prompt 19", "prompt 9"]
GOLDEN_SEED = 10242927341532925522


@pytest.mark.parametrize("epoch", [0, 1, 7])
def test_every_prompt_comes_once_an_epoch(epoch: int) -> None:
    source = PromptSource(PROMPTS, run_seed=3)
    tickets = range(epoch * len(PROMPTS), (epoch + 1) * len(PROMPTS))
    assert sorted(source.prompt_of(ticket) for ticket in tickets) == sorted(PROMPTS)


def test_epochs_are_in_different_orders() -> None:
    source = PromptSource(PROMPTS, run_seed=3)
    first, second = ([source.prompt_of(e * 20 + i) for i in range(20)] for e in (0, 1))
    assert first != second


def test_runs_with_different_seeds_are_in_different_orders() -> None:
    first, second = (
        [PromptSource(PROMPTS, run_seed=seed).prompt_of(i) for i in range(20)] for seed in (0, 1)
    )
    assert first != second


def test_a_ticket_does_not_depend_on_which_were_asked_before() -> None:
    fresh, used = (PromptSource(PROMPTS, run_seed=3) for _ in range(2))
    for ticket in range(0, 200, 7):
        used.prompt_of(ticket)
    assert used.prompt_of(5) == fresh.prompt_of(5)


def test_order_never_changes_between_releases() -> None:
    source = PromptSource(PROMPTS, run_seed=3)
    assert [source.prompt_of(ticket) for ticket in (0, 1, 2, 20)] == GOLDEN_PROMPTS


def test_seed_never_changes_between_releases() -> None:
    assert seed_of(3, 12) == GOLDEN_SEED


def test_seeds_use_64_bits() -> None:
    assert max(seed_of(0, ticket) for ticket in range(100)).bit_length() == 64


def test_seeds_of_different_tickets_and_runs_differ() -> None:
    seeds = {seed_of(run, ticket) for run in range(30) for ticket in range(100)}
    assert len(seeds) == 3000


def test_source_gives_the_seed_of_its_run() -> None:
    assert PromptSource(PROMPTS, run_seed=3).seed_of(12) == seed_of(3, 12)


def test_no_prompts_are_refused() -> None:
    with pytest.raises(ValueError, match="prompts is empty"):
        PromptSource([], run_seed=0)


def test_a_negative_ticket_is_refused() -> None:
    with pytest.raises(ValueError, match="ticket is -1"):
        PromptSource(PROMPTS, run_seed=0).prompt_of(-1)
