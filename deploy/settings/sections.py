"""The sections of a run config, one frozen model each; a default is written here and nowhere else.

A field's docstring is its documentation: the table in `deploy/configs/README.md` is made of them.
Checks that need two sections live in `deploy.settings.checks`. Imports no torch, so a config error
costs no start-up time.
"""

from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit

from pydantic import Field, field_validator, model_validator

from buffer.urls import SCHEMES, urls_in
from deploy.settings.prompts import Prompts, named_prompts
from learner.settings.types import (
    Count,
    Gpus,
    NodeLabels,
    NonNegative,
    Number,
    Positive,
    Seconds,
    Section,
    Share,
    Whole,
)


class Actors(Section):
    """The samplers."""

    count: Count = 1
    """Sampler actors at the start of the run; `python -m deploy.fleet` scales them under way."""
    auto: tuple[Count, Count] | None = None
    """Least and most samplers between which their number follows what is measured; null: it stays
    as it is set."""
    group_size: Count = 6
    """Trajectories of one prompt that are compared with each other (N_s)."""
    groups_per_batch: Count = 1
    """Groups that a sampler runs in one forward pass."""
    fixed_initial_noise: bool = False
    """One initial noise for a whole group: the on-policy ablation."""
    lease_s: Seconds = 15.0
    """Time after which the tickets of a dead sampler are given to another; a living one renews
    them, however long a forward pass takes."""
    num_cpus: NonNegative = 1.0
    """Ray CPUs of one sampler."""
    num_gpus: Gpus = 0.0
    """Ray GPUs of one sampler; a fraction shares one."""
    node_labels: NodeLabels = Field(default_factory=dict)
    """Labels that a Ray node must have to hold a sampler; none: any node will do."""
    threads: Count = 1
    """CPU threads of one sampler's torch."""


class RewardFleet(Section):
    """Servers of one reward alone; the reward servers decode for them."""

    servers: Count = 1
    """Actors at the start of the run that compute this reward and nothing else."""
    auto: tuple[Count, Count] | None = None
    """Least and most of them, between which their number follows what is measured; null: it stays
    as it is set."""
    num_cpus: NonNegative = 1.0
    """Ray CPUs of one of them."""
    num_gpus: Gpus = 0.0
    """Ray GPUs of one of them; a fraction shares one."""
    node_labels: NodeLabels = Field(default_factory=dict)
    """Labels that a Ray node must have to hold one of them; none: any node will do."""


class Reward(Section):
    """One reward model."""

    kind: str = Field(min_length=1)
    """A registered name, or `module:Class`."""
    weight: Number = 1.0
    """Factor of this reward in the sum that is trained on; 0 measures only."""
    scale: Literal["own", "standard"] = "own"
    """`standard`: before it is weighted, its mean is taken off and it is divided by its standard
    deviation, both over the first samples of the original model, so that weights compare rewards
    of different sizes. Evaluation reports it as it is."""
    noise: NonNegative = 0.0
    """Standard deviation of Gaussian noise on its labels, to study noisy queries; evaluations add
    none."""
    args: dict[str, Any] = Field(default_factory=dict)
    """Keyword arguments of the reward's class."""
    fleet: RewardFleet | None = None
    """A fleet of its own for this reward, scaled as `rewards.<name>`; null: every reward server
    computes it."""


class Scoring(Section):
    """The reward servers; each of them holds the VAE that decodes, and every reward that has no
    fleet of its own."""

    servers: Count = 1
    """Server actors at the start of the run."""
    auto: tuple[Count, Count] | None = None
    """Least and most servers between which their number follows what is measured; null: it stays
    as it is set."""
    max_batch: Count = 96
    """Most images decoded and scored in one call."""
    timeout_s: Seconds = 60.0
    """Time one call of a reward may take before its images count as failed, in an evaluation as
    well."""
    lease_s: Seconds = 15.0
    """Time after which records claimed by a dead server are given to another; a living one renews
    its claims."""
    outage_s: Seconds = 300.0
    """How long a reward that used to work may be down before its server gives up. Until then
    records wait, and a picture that was scored before is tried now and then."""
    num_cpus: NonNegative = 1.0
    """Ray CPUs of one server."""
    num_gpus: Gpus = 0.0
    """Ray GPUs of one server."""
    node_labels: NodeLabels = Field(default_factory=dict)
    """Labels that a Ray node must have to hold a reward server; none: any node will do."""
    threads: Count = 1
    """CPU threads of one server's torch."""


class Replay(Section):
    """The replay buffer in Redis."""

    redis: str = "auto"
    """`auto`: REDIS_URL if it is set, else an embedded server; `embedded`; `environment`: REDIS_URL
    or an error; or a URL without a password. Several URLs, with spaces between them, are the
    servers that the replay spreads over."""
    shards: Count = 1
    """Embedded servers that the replay spreads over by group. Where URLs are given, their number
    says it."""
    capacity_groups: Count = 512
    """Scored groups that are kept; the oldest make room. At least all that may be sampled from one
    checkpoint to the next."""
    capacity_mb: Annotated[float, Field(gt=0)] | None = None
    """Size of their latents above which the oldest make room too; null: no such limit."""
    max_staleness: Whole | None = None
    """Cycles that samplers may be ahead of the learner: samples of a cycle are then made by a
    policy that is at most so many versions old. 0: the learner waits while they are made; null: 1,
    so that they are made while it learns, but 0 with `pace: lockstep` and for ppo and pso."""
    max_samples_per_insert: Annotated[float, Field(gt=0)] | None = None
    """Most often that a trajectory may be drawn on average; a method whose steps ask for more is
    refused at start. null: as often as they ask."""
    outage_s: Seconds = 120.0
    """How long Redis may not answer before the run ends. Until then all processes wait and try
    again."""
    max_pending_records: Count = 512
    """Records that may wait for their reward before samplers pause."""
    append_only: bool = True
    """The embedded server writes every change to disk, so that a crashed run can resume."""
    max_attempts: Count = 3
    """Tries to score a record before it is set aside with its reason."""

    @field_validator("redis")
    @classmethod
    def _holds_no_secret(cls, value: str) -> str:
        if value in ("auto", "embedded", "environment"):
            return value
        urls = [urlsplit(url) for url in urls_in(value)]
        if any(url.scheme not in SCHEMES for url in urls):
            raise ValueError(
                "must be auto, embedded, environment or a URL that begins with redis://, "
                "rediss:// or unix://, or several of these with spaces between them"
            )
        if any(url.password is not None or "password=" in url.query for url in urls):
            raise ValueError(
                "holds a password, and a config is printed and copied: put the URL into the "
                "environment variable REDIS_URL and write redis: environment"
            )
        return value


class Metric(Section):
    """A true score that evaluation measures."""

    kind: str = Field(min_length=1)
    """A registered reward, or `module:Class`."""
    args: dict[str, Any] = Field(default_factory=dict)
    """Keyword arguments of the reward's class."""

    @model_validator(mode="before")
    @classmethod
    def _short_form(cls, value: object) -> object:
        return {"kind": value} if isinstance(value, str) else value


class Distance(Section):
    """How different two pictures look."""

    kind: str = Field(min_length=1)
    """`lpips`, `dreamsim`, or `module:Class`."""
    args: dict[str, Any] = Field(default_factory=dict)
    """Keyword arguments of its class."""


class Diversity(Section):
    """How different the images of one prompt are."""

    prompts: Count = 8
    """Prompts it is measured on."""
    per_prompt: Annotated[int, Field(ge=2)] = 8
    """Images of one prompt."""
    distances: dict[str, Distance] = Field(default_factory=dict)
    """Distances of pictures to measure it by, beside that of their latents; by name, such as
    `lpips: {kind: lpips, args: {backbone: alexnet.pth, heads: alex.pth}}`."""


class HeldOutFalls(Section):
    """Ends a run whose `evaluation.best_by` has not risen for a while."""

    kind: Literal["held_out_falls"]
    """Which rule this is."""
    patience: Count = 3
    """Evaluations without a gain that end the run."""
    min_gain: NonNegative = 0.0
    """What the score must be above its best to count as a gain."""


class KlAbove(Section):
    """Ends a run whose policy has moved too far from the original model."""

    kind: Literal["kl_above"]
    """Which rule this is."""
    nats: Positive
    """Highest true KL of a step, in nats; a version above it is not kept either."""


class DiversityBelow(Section):
    """Ends a run whose pictures of one prompt have become alike."""

    kind: Literal["diversity_below"]
    """Which rule this is."""
    share: Share = 0.7
    """Least share of the original model's diversity; a version below it is not kept either."""


StopRule = Annotated[HeldOutFalls | KlAbove | DiversityBelow, Field(discriminator="kind")]


class Evaluation(Section):
    """What is measured on held-out prompts, before, during and after training."""

    prompts: Prompts
    """Held-out prompts: a file or the shapes generator."""
    samples: Count = 256
    """Images an evaluation scores, spread over the prompts."""
    seed: Whole = 1234
    """Seed of the noise, the same in every evaluation."""
    max_batch: Count | None = None
    """Most pictures that are drawn or decoded at once; null: as many as a sampler draws and a
    reward server decodes."""
    timeout_s: Seconds = 14400.0
    """Deadline of an evaluation, and of writing the result; who misses it is replaced."""
    rewards: dict[str, Metric] = Field(default_factory=dict)
    """Scores by name, such as `exact: {kind: shapes-exact}`."""
    diversity: Diversity = Diversity()
    """Diversity at a fixed prompt; the KL to the original model is measured on the same noise."""
    every_cycles: Count | None = None
    """Cycles between two evaluations beside training. Training never waits for them; one that
    overruns makes the next be skipped. null: only before and after."""
    best_by: str | None = None
    """Score of an evaluation, such as `exact_2step`, whose highest value decides which evaluated
    version is the run's result; null: the last one is."""
    stop: StopRule | None = None
    """Rule that ends training early; null: none."""
    num_cpus: NonNegative = 0.0
    """Ray CPUs of the evaluator; 0, since it mostly works while the others are idle."""
    num_gpus: Gpus = 0.0
    """Ray GPUs of the evaluator."""
    node_labels: NodeLabels = Field(default_factory=dict)
    """Labels that a Ray node must have to hold the evaluator; none: any node will do."""
    threads: Count = 1
    """CPU threads of the evaluator's torch."""

    _prompts = field_validator("prompts", mode="before")(named_prompts)


class FailureBudget(Section):
    """How many failed records a run bears."""

    share: Share = 0.05
    """Share of failed records above which the run stops."""
    minimum: Count = 20
    """Failed records below which the share is not looked at."""
    of_last: Count = 5000
    """So many of the newest records that were scored or failed are judged."""

    @model_validator(mode="after")
    def _can_be_exceeded(self) -> Self:
        if self.of_last < self.minimum:
            raise ValueError(
                f"`of_last` is {self.of_last}, of which `minimum` = {self.minimum} can never fail: "
                "raise of_last, or lower minimum"
            )
        return self


class Limits(Section):
    """What ends a run early."""

    failure_budget: FailureBudget = FailureBudget()
    """Failed records that stop the run."""
    reward_queries: Count | None = None
    """Most scores of single pictures that training may ask for, those asked again after a failure
    included; training ends when the next cycle's would not fit. null: no limit."""
    max_wall_s: Seconds | None = None
    """Wall time of one start, after which the run checkpoints and ends, `stall_s` later at most;
    null: no limit."""
    stall_s: Seconds = 600.0
    """Deadline of every wait: a run without progress for so long ends with an error. A sampler or
    reward server busy with one batch for half of it, or with its first for twice it, is taken to
    hang, and replaced; so is a learner without progress for six times it, and at least an hour."""


class Callback(Section):
    """Code that the run's driver tells how the run goes (`deploy.callbacks.Callback`)."""

    kind: str = Field(min_length=1)
    """`module:Class`, with some of the methods on_start, on_points, on_evaluation and on_end."""
    args: dict[str, Any] = Field(default_factory=dict)
    """Keyword arguments of its class."""


class Wandb(Section):
    """Weights & Biases beside TensorBoard (`pip install -e '.[wandb]'`)."""

    project: str = Field(default="fleetune", min_length=1)
    """Project that the run is shown in."""
    entity: str | None = None
    """User or team that it belongs to; null: that of the key, which is WANDB_API_KEY in the
    environment."""
    mode: Literal["online", "offline"] = "online"
    """`offline` writes into the run's folder alone, to be sent later by `wandb sync`."""
    tags: tuple[str, ...] = ()
    """Tags of the run."""


class Logging(Section):
    """Where else curves go; `metrics.jsonl` and TensorBoard's files are always written."""

    wandb: Wandb | None = None
    """Weights & Biases; null: not."""
