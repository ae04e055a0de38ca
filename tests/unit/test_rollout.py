"""Policies as samplers run them: groups in, latents and their bookkeeping out."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from actors.rollout import FewStepPolicy, Group, ManyStepPolicy, to_records
from actors.sampling import guided_noise
from learner.diffusion.chain import Chain
from learner.diffusion.consistency import guidance_embedding
from learner.diffusion.noise import INITIAL_NOISE, member_noise
from learner.policy.flops import FlopMeter, Metered
from tests.unit.tiny_networks import SCHEDULE, SHAPE, network


def encode(prompts: list[str]) -> Tensor:
    return torch.stack(
        [member_noise(sum(prompt.encode()), 0, (5, 8), INITIAL_NOISE) for prompt in prompts]
    )


def parts(**changes: Any) -> dict[str, Any]:
    return {
        "network": network(),
        "encode": encode,
        "take": lambda weights: None,
        "schedule": SCHEDULE,
        "latent_shape": SHAPE,
        "group_size": 3,
        "num_steps": 2,
        "guidance_scale": 2.0,
        **changes,
    }


CAT, DOG = Group(0, "a cat", 11), Group(1, "a dog", 12)


def test_few_step_policy_keeps_and_scores_every_prediction() -> None:
    (rollout,) = FewStepPolicy(**parts(num_steps=4)).sample([CAT])
    shape, dtype = rollout.latents.shape, rollout.latents.dtype
    told = rollout.steps, rollout.scored, shape, dtype
    assert told == ((1, 2, 3, 4), (0, 1, 2, 3), (3, 4, *SHAPE), np.float16)


def test_many_step_policy_keeps_the_chosen_states_and_scores_the_clean_one() -> None:
    (rollout,) = ManyStepPolicy(**parts(num_steps=5), keep=lambda seed: (0, 3)).sample([CAT])
    told = rollout.steps, rollout.scored, rollout.latents.shape
    assert told == ((0, 3, 5), (2,), (3, 3, *SHAPE))


@pytest.mark.parametrize(
    "policy",
    [
        FewStepPolicy(**parts()),
        FewStepPolicy(**parts(network=network(16), guidance_dim=16)),
        ManyStepPolicy(**parts(num_steps=5), keep=lambda seed: (0, 3)),
    ],
    ids=["few", "few-guided", "many"],
)
def test_a_group_does_not_depend_on_its_batch(policy: FewStepPolicy | ManyStepPolicy) -> None:
    alone = policy.sample([DOG])[0].latents
    together = policy.sample([CAT, DOG])[1].latents
    # Equal but for the last bit of float16: sums are cut differently in a larger batch.
    np.testing.assert_allclose(together, alone, rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize(("num_steps", "calls"), [(1, 1), (2, 2)])
def test_a_group_is_told_its_share_of_what_its_batch_cost(num_steps: int, calls: int) -> None:
    meter = FlopMeter()
    metered = Metered(network(), meter)
    policy = FewStepPolicy(**parts(network=metered, num_steps=num_steps), meter=meter)
    alone = policy.sample([CAT])[0].flops
    assert alone > 0
    assert policy.sample([CAT])[0].flops == alone
    assert [rollout.flops for rollout in policy.sample([CAT, DOG])] == [alone, alone]
    assert meter.total == 4 * alone
    once = FlopMeter()
    single = FewStepPolicy(**parts(network=Metered(network(), once), num_steps=1), meter=once)
    assert alone == calls * single.sample([CAT])[0].flops


def test_a_group_sampled_twice_is_bit_identical() -> None:
    first, second = (FewStepPolicy(**parts()).sample([CAT, DOG]) for _ in range(2))
    assert [one.latents.tobytes() for one in first] == [two.latents.tobytes() for two in second]


def test_members_of_a_group_differ() -> None:
    latents = FewStepPolicy(**parts()).sample([CAT])[0].latents
    assert len({member.tobytes() for member in latents}) == 3


def test_with_shared_initial_noise_members_agree_on_the_first_prediction_only() -> None:
    latents = FewStepPolicy(**parts(shared_initial_noise=True)).sample([CAT])[0].latents
    distinct = [len({member[step].tobytes() for member in latents}) for step in (0, 1)]
    assert distinct == [1, 3]


def test_shared_initial_noise_needs_a_second_step() -> None:
    with pytest.raises(ValueError, match="makes all members equal"):
        FewStepPolicy(**parts(num_steps=1, shared_initial_noise=True))


def test_groups_of_a_batch_may_keep_different_states() -> None:
    kept = {CAT.seed: (0, 3), DOG.seed: (1, 4)}
    policy = ManyStepPolicy(**parts(num_steps=5), keep=lambda seed: kept[seed])
    everything = ManyStepPolicy(**parts(num_steps=5), keep=lambda seed: (0, 1, 2, 3, 4))
    for rollout, whole in zip(
        policy.sample([CAT, DOG]), everything.sample([CAT, DOG]), strict=True
    ):
        assert rollout.scored == (2,)
        np.testing.assert_array_equal(rollout.latents, whole.latents[:, list(rollout.steps)])


def test_what_is_told_of_a_kept_state_is_kept_and_scored_after_the_end() -> None:
    policy = ManyStepPolicy(**parts(num_steps=50), keep=lambda seed: (7, 40), consistency=network())
    rollout = policy.sample([CAT, DOG])[1]
    assert (rollout.steps, rollout.scored) == ((7, 40, 50, 58, 91), (2, 3, 4))
    states = torch.from_numpy(rollout.latents[:, :2]).float()
    text, chain = encode(["a dog"] * 3), Chain(SCHEDULE)
    for slot, state in enumerate((7, 40)):
        told = chain.told_clean(
            lambda x, t_B: network()(x, t_B, text, None), states[:, slot], torch.full((3,), state)
        )
        kept = torch.from_numpy(rollout.latents[:, 3 + slot]).float()
        torch.testing.assert_close(kept, told, atol=2e-2, rtol=1e-2)


def test_the_references_noise_is_that_of_the_state_as_it_is_stored() -> None:
    policy = ManyStepPolicy(**parts(num_steps=50), keep=lambda seed: (7, 40), reference=network())
    rollout = policy.sample([CAT])[0]
    assert (rollout.steps, rollout.scored) == ((7, 40, 50, 109, 142), (2,))
    states = torch.from_numpy(rollout.latents[:, :2]).float()
    doubled = encode([""] * 3 + ["a cat"] * 3)
    for slot, t in enumerate((841, 181)):
        eps = guided_noise(network(), states[:, slot], torch.full((3,), t), doubled, 2.0)
        kept = torch.from_numpy(rollout.latents[:, 3 + slot])
        torch.testing.assert_close(kept, eps.half(), atol=1e-3, rtol=1e-3)


def test_guidance_embedding_reaches_the_network_as_scale_minus_one() -> None:
    seen: list[Tensor | None] = []

    def spy(x_BCHW: Tensor, t_B: Tensor, prompts: Any, guidance_BE: Tensor | None) -> Tensor:
        seen.append(guidance_BE)
        return x_BCHW

    FewStepPolicy(**parts(network=spy, guidance_scale=8.0, guidance_dim=16)).sample([CAT])
    expected = guidance_embedding(torch.full((3,), 7.0), 16)
    assert seen[0] is not None
    assert torch.equal(seen[0], expected)


def test_unconditional_rows_come_first() -> None:
    asked: list[list[str]] = []

    def spy(prompts: list[str]) -> Tensor:
        asked.append(prompts)
        return encode(prompts)

    ManyStepPolicy(**parts(encode=spy, group_size=2), keep=lambda seed: ()).sample([CAT, DOG])
    assert asked == [["", "", "", "", "a cat", "a cat", "a dog", "a dog"]]


def test_without_guidance_only_the_prompts_go_through_the_network() -> None:
    rows: list[int] = []

    def spy(x_BCHW: Tensor, t_B: Tensor, prompts: Any, guidance_BE: Tensor | None) -> Tensor:
        rows.append(len(x_BCHW))
        return network()(x_BCHW, t_B, prompts, guidance_BE)

    free = parts(num_steps=5, guidance_scale=1.0, network=spy)
    alone = ManyStepPolicy(**free, keep=lambda seed: ()).sample([CAT])[0].latents
    assert rows == [3] * 5
    almost = parts(num_steps=5, guidance_scale=1.0 + 1e-9)
    doubled = ManyStepPolicy(**almost, keep=lambda seed: ()).sample([CAT])[0].latents
    np.testing.assert_allclose(alone, doubled, rtol=2e-3, atol=2e-3)


def test_a_member_whose_latents_overflow_float16_has_no_record_but_a_reason() -> None:
    (rollout,) = FewStepPolicy(**parts()).sample([CAT])
    rollout.latents[1, 0, 0, 0, 0] = np.inf
    records, failed = to_records(CAT, rollout, policy_version=9)
    assert [record.member for record in records] == [0, 2]
    assert failed == {1: "policy version 9 draws latents that are not finite in float16"}


def test_records_hold_one_latent_a_step() -> None:
    (rollout,) = FewStepPolicy(**parts()).sample([CAT])
    record = to_records(CAT, rollout, policy_version=9)[0][2]
    assert (record.member, record.policy_version, len(record.latents)) == (2, 9, 2)
    assert np.array_equal(record.latents[1], rollout.latents[2, 1])
