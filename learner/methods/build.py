"""Which builder puts which method together: the one place that knows all kinds."""

from collections.abc import Callable, Mapping
from typing import Any

from learner.methods.alternation import Alternating
from learner.methods.draft_build import build_draft
from learner.methods.lasro_build import build_lasro
from learner.methods.likelihood_build import build_likelihood
from learner.methods.on_policy_build import build_on_policy
from learner.methods.parts import Given
from learner.methods.sqdf_build import build_sqdf

BUILDERS: Mapping[str, Callable[[Any, Given], Alternating]] = {
    "lasro": build_lasro,
    "sqdf": build_sqdf,
    "draft": build_draft,
    "ppo": build_on_policy,
    "pso": build_on_policy,
    "gors": build_likelihood,
    "dpo": build_likelihood,
}
"""By `method.kind`; each takes that kind's settings."""
