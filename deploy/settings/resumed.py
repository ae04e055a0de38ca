"""What a run that goes on must keep: settings that its samples, weights or scores are of.

Compares what a run was begun with and what is given now, and looks at nothing of the run itself.
The former is plain JSON, so that a file of another version can be compared. Settings missing there
are skipped, unless a rule has their value of before; any setting without a rule may change: where
processes run and how many, how they compute, what a step learns from what is there, and the
arguments of rewards, as services move. A rule stands
here because the code would go on with a mixture, and say nothing or fail late.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from operator import eq
from typing import Any

from deploy.settings.problems import Problem, without_password
from deploy.settings.run_config import RunConfig
from learner.settings.model import FEW_STEPS

_Json = Mapping[str, Any]
_ABSENT = object()
_MAX_SHOWN = 60

_MODEL = "its samples, weights and scores are of that model"
_DRAWN = "its samples and scores were drawn so"
_DECODED = "its scores are of pictures that were decoded so"
_ADAPTER = "its trained weights have that form"
_MEASURED = "what was measured before training was measured so"
_KEPT = "its samples keep what that asked for"
_FITTED = "its surrogate was fitted so"
_ROUNDS = "which samples are of which cycle follows from it"

_BACK = "Give it as it was, or begin another run"
_RENAMED = (
    f"{_BACK}; if it means the same, such as a model that has moved, change it in the config.json "
    "of the run's folder, too"
)


def changed_settings(begun: _Json, config: RunConfig) -> Iterator[Problem]:
    """Every bound setting that differs.

    Args:
        begun: the `config.json` of the run that goes on.
        config: what is given now.
    """
    now = config.model_dump(mode="json")
    for rule in _rules(begun, now):
        was, given = _at(begun, *rule.path), _at(now, *rule.path)
        was = rule.before if was is _ABSENT else was
        if was is _ABSENT or given is _ABSENT or rule.alike(was, given):
            continue
        told = f"was {_shown(was)}, given {_shown(given)}: {rule.because}. {rule.remedy}"
        yield Problem(".".join(rule.path), told)
    yield from _changed_cycles(begun, now)


@dataclass(frozen=True)
class _Rule:
    """One setting that is bound.

    Args:
        path: its keys; a name that a user gave may hold a dot.
        because: what depends on it.
        alike: whether two values are as good as equal.
        before: what a run did before there was such a setting.
    """

    path: tuple[str, ...]
    because: str
    remedy: str = _RENAMED
    alike: Callable[[Any, Any], bool] = eq
    before: Any = _ABSENT


def _rules(begun: _Json, now: _Json) -> Iterator[_Rule]:
    """What is bound for a run that began so, in the order of a config."""
    yield _Rule(("seed",), "the prompts and the noise of its samples follow from it")
    yield from _model_rules(begun, now)
    yield from _prompt_rules(now, ("prompts",), "which prompt a sample is of follows from them")
    yield _Rule(("actors", "group_size"), "its groups have so many samples")
    yield _Rule(("actors", "fixed_initial_noise"), _DRAWN)
    yield from _named_rules(now, ("rewards",), "its samples have the scores of these")
    for name in now["rewards"]:
        because = "by what a reward is scaled is settled once, by the first samples"
        yield _Rule(("rewards", name, "scale"), because)
        yield _Rule(("rewards", name, "weight"), "what was measured before is a sum by it")
        yield _Rule(("rewards", name, "noise"), "its samples' labels have so much")
    yield from _learner_rules(begun, now)
    yield from _method_rules(begun, now)
    yield from _evaluation_rules(begun, now)


def _model_rules(begun: _Json, now: _Json) -> Iterator[_Rule]:
    for key in ("path", "unet", "vae", "lcm_lora"):
        yield _Rule(("model", key), _MODEL)
    for key in ("height", "width", "num_steps", "sampler", "guidance_scale"):
        yield _Rule(("model", key), _DRAWN)
    yield _Rule(("model", "vae_precision"), _DECODED, _BACK, before="fp32")
    kind = now["method"]["kind"]
    asks = kind in ("lasro", "gors") and now["model"]["num_steps"] <= FEW_STEPS
    if asks and _both(begun, now, kind, "method", "kind"):
        yield _Rule(("model", "teacher"), "its weights were held to that model")
    yield _Rule(("model", "trainable"), _ADAPTER)
    if _both(begun, now, "lora", "model", "trainable"):
        for key in ("lora_rank", "lora_alpha", "lora_targets"):
            yield _Rule(("model", key), _ADAPTER)


def _prompt_rules(now: _Json, path: tuple[str, ...], because: str) -> Iterator[_Rule]:
    for key in _at(now, *path):
        if key == "digest":  # of texts that cannot be read there is none, which is told elsewhere
            yield _Rule((*path, key), because, _BACK, alike=lambda was, given: given in (None, was))
        else:
            yield _Rule((*path, key), because)


def _learner_rules(begun: _Json, now: _Json) -> Iterator[_Rule]:
    """Of DeepSpeed's checkpoints, which have one form with ZeRO and another without."""
    because = "a checkpoint with ZeRO is no checkpoint without"
    path = ("learner", "zero_stage")
    yield _Rule(path, because, alike=lambda was, given: bool(was) == bool(given), remedy=_BACK)
    if _at(begun, *path) in (1, 2) and now["learner"]["zero_stage"] > 0:
        because = "its checkpoint holds the old one, which would stay in force"
        yield _Rule(("learner", "grad_clip"), because, _BACK)
        because = "with ZeRO each rank's checkpoint holds the share of so many"
        yield _Rule(("learner", "ranks"), because, _BACK)


def _method_rules(begun: _Json, now: _Json) -> Iterator[_Rule]:
    yield _Rule(("method", "kind"), "its weights and samples are of that method", _BACK)
    kind = now["method"]["kind"]
    if not _both(begun, now, kind, "method", "kind"):
        return
    if kind == "lasro":
        yield from _lasro_rules(begun)
    elif kind == "sqdf":
        yield from _sqdf_rules(begun, now)
    elif kind == "draft":
        yield from _draft_rules(begun, now)
    yield _Rule(("method", "kept_steps"), _KEPT)
    yield _Rule(("method", "pretrain", "groups"), _ROUNDS, _BACK)
    if _at(begun, "method", "reward") == "decoded":
        yield _Rule(("method", "reward"), "its checkpoint holds no surrogate", _BACK)
    if _learned_surrogate(begun) and _learned_surrogate(now):
        yield from _surrogate_rules(begun, now)


def _learned_surrogate(config: _Json) -> bool:
    kind = _at(config, "method", "kind")
    return kind == "lasro" or _at(config, "method", "reward") == "surrogate"


def _surrogate_rules(begun: _Json, now: _Json) -> Iterator[_Rule]:
    path = ("method", "surrogate")
    yield _Rule((*path, "backbone"), _FITTED)
    yield _Rule((*path, "heads"), _FITTED)
    if not _both(begun, now, "conv", *path, "backbone"):  # which is told no time
        yield _Rule((*path, "timestep"), _FITTED)


def _lasro_rules(begun: _Json) -> Iterator[_Rule]:
    yield _Rule(("method", "reward_steps"), _KEPT)
    if _at(begun, "method", "anchor", "data") == "none":
        because = "the samples that it distils on were not put aside before the first cycle"
        yield _Rule(("method", "anchor", "data"), because, _BACK)


def _sqdf_rules(begun: _Json, now: _Json) -> Iterator[_Rule]:
    """Of what samplers keep. Of the last states they keep all, however these are drawn."""
    path = ("method", "states")
    for key in ("kept", "keep", "score_clean"):
        yield _Rule((*path, key), _KEPT)
    if _both(begun, now, True, *path, "score_clean"):
        for key in ("by", "lora"):
            yield _Rule(("method", "clean", key), "its samples have scores of what that told")
    if _at(begun, *path, "store_reference") is False:
        yield _Rule((*path, "store_reference"), _KEPT, _BACK)
    if _both(begun, now, "spread", *path, "keep"):
        yield _Rule((*path, "times"), _KEPT)
        if _both(begun, now, "discounted", *path, "times"):
            yield _Rule(("method", "discount"), _KEPT)


def _draft_rules(begun: _Json, now: _Json) -> Iterator[_Rule]:
    """Of the states that a path starts from, and of those whose KL is told beside."""
    yield _Rule(("method", "path"), _KEPT)
    if _both(begun, now, _at(now, "method", "path"), "method", "path"):
        yield _Rule(("method", "last_steps"), _KEPT)
        yield _Rule(("method", "stopped_in"), _KEPT)
    if _keeps_beside(begun) != _keeps_beside(now):
        alike = _at(begun, "method", "kl_over") == _at(now, "method", "kl_over")
        yield _Rule(("method", "alpha" if alike else "kl_over"), _KEPT, before="path")


def _keeps_beside(config: _Json) -> bool:
    alpha = _at(config, "method", "alpha")
    return _at(config, "method", "kl_over") == "chain" and alpha != 0


def _evaluation_rules(begun: _Json, now: _Json) -> Iterator[_Rule]:
    path = ("evaluation",)
    yield from _prompt_rules(now, (*path, "prompts"), _MEASURED)
    for key in ("samples", "seed"):
        yield _Rule((*path, key), _MEASURED)
    yield from _named_rules(now, (*path, "rewards"), _MEASURED)
    for key in ("prompts", "per_prompt"):
        yield _Rule((*path, "diversity", key), _MEASURED)
    yield from _named_rules(now, (*path, "diversity", "distances"), _MEASURED)
    kept_by = _at(begun, *path, "best_by")
    if kept_by not in (None, _ABSENT) and now["evaluation"]["best_by"] is not None:
        because = "of the versions that were measured beside training it kept the best by that"
        yield _Rule((*path, "best_by"), because, _BACK)


def _named_rules(now: _Json, path: tuple[str, ...], because: str) -> Iterator[_Rule]:
    """Of a section of names: which there are, and of what kind each is."""
    yield _Rule(path, because, alike=_same_names)
    for name in _at(now, *path):
        yield _Rule((*path, name, "kind"), because)


def _same_names(was: Any, given: Any) -> bool:
    return isinstance(was, Mapping) and was.keys() == given.keys()


def _changed_cycles(begun: _Json, now: _Json) -> Iterator[Problem]:
    """The first cycle of those that both have whose size differs; cycles may follow or be left."""
    if not _both(begun, now, now["method"]["kind"], "method", "kind"):
        return
    pairs = zip(_cycle_sizes(begun), _cycle_sizes(now), strict=False)
    for number, (was, given) in enumerate(pairs, start=1):
        if was != given:
            told = f"was {_shown(was)} in cycle number {number}, given {_shown(given)}: {_ROUNDS}. "
            remedy = (
                "Give the cycles that it was begun with the sizes that they had, and as many more "
                "as you like, or begin another run"
            )
            yield Problem("method.groups_per_cycle", told + remedy)
            return


def _cycle_sizes(config: _Json) -> Sequence[Any]:
    """Groups of every cycle; none where the config does not say."""
    sizes, cycles = (_at(config, "method", key) for key in ("groups_per_cycle", "cycles"))
    if isinstance(sizes, list):
        return sizes
    return [sizes] * cycles if isinstance(sizes, int) and isinstance(cycles, int) else []


def _both(begun: _Json, now: _Json, value: object, *path: str) -> bool:
    """Whether a setting has that value in both."""
    return _at(begun, *path) == value == _at(now, *path)


def _at(config: object, *path: str) -> Any:
    """A setting's value; `_ABSENT` where there is none."""
    for key in path:
        if not isinstance(config, Mapping) or key not in config:
            return _ABSENT
        config = config[key]
    return config


def _shown(value: object) -> str:
    """As a config has it; of a section of names these alone."""
    text = without_password(json.dumps(sorted(value) if isinstance(value, Mapping) else value))
    return text if len(text) <= _MAX_SHOWN else f"{text[:_MAX_SHOWN]}..."
