"""What a user sets about the policy's model: its parts, its sampler, and what is trained of it."""

from typing import Literal, Self

from pydantic import Field, field_validator, model_validator

from learner.settings.types import Count, NonNegative, Positive, Precision, Section

FEW_STEPS = 8
"""Largest step count of a distilled model; above it, the model is a many-step chain."""


class Model(Section):
    """The policy: where its pipeline lies and which of its weights are trained."""

    path: str = Field(min_length=1)
    """Pipeline to fine-tune: a local diffusers folder or a hub id."""
    unet: str | None = None
    """UNet in the place of the pipeline's, such as a distilled one that is published alone: a
    folder or a hub id; null: its own."""
    vae: str | None = None
    """Likewise a VAE. None need be safe in fp16, which nothing is decoded in."""
    lcm_lora: str | None = None
    """LCM-LoRA that is fused into the UNet before anything is trained, so that it becomes a model
    of few steps: a folder or a hub id; null: none."""
    height: Count | None = None
    """Height of pictures in pixels, with `width`; null: what the UNet was built for."""
    width: Count | None = None
    """Their width."""
    teacher: str | None = None
    """Multi-step pipeline that a model of few steps was distilled from: lasro needs it for its
    anchor, gors for its loss."""
    num_steps: Literal[1, 2, 3, 4, 8, 50] = 2
    """Sampling steps of the policy."""
    sampler: Literal["auto", "consistency", "ancestral"] = "auto"
    """How a model of few steps is drawn: as a consistency model (LCM), or by Euler's ancestral
    steps on the trailing grid, as SDXL-Turbo; auto: the latter where the pipeline's scheduler is
    such a one and no LCM-LoRA is fused in."""
    guidance_scale: NonNegative = 1.0
    """Guidance w. Of many steps: classifier-free. Of few steps: embedded where the UNet has an
    embedding for it, else of no effect on samples; and that of the teacher in the anchor or a
    distillation loss."""
    trainable: Literal["lora", "full"] = "lora"
    """Train low-rank adapters of the UNet, or all its weights."""
    lora_rank: Count = 16
    """Rank of an adapter."""
    lora_alpha: Positive = 16.0
    """Scale of an adapter, divided by its rank."""
    lora_targets: Literal["attention", "all"] | tuple[str, ...] = "attention"
    """Which modules get an adapter: attention projections, all linear and convolution layers, or
    the names in a list."""
    precision: Precision = "fp32"
    """What the networks of policy, base and teacher compute in, in samplers and learner: bf16 is
    quicker where the device has it and far slower elsewhere; auto takes it where the device has it.
    What is trained, latents and losses stay fp32."""
    vae_precision: Literal["fp32", "bf16"] = "fp32"
    """What the VAE decodes in, in reward servers, evaluator and a learner that climbs decoded
    rewards. In bf16, which does not overflow, pixels differ a little from those in fp32, and
    rewards may see that."""
    attention: Literal["sdpa", "plain"] = "sdpa"
    """Attention kernel: torch's fused one, or plain products for where the fused one is slow."""
    compile: bool = False
    """Compile UNets by torch.compile. It pays on a GPU where calls of one shape come many thousands
    of times: each shape is compiled when it first comes, which takes minutes for a large UNet, in
    every process. Needs a C++ compiler there."""
    text_cache_mb: Positive = 512.0
    """Size of text states that a process keeps, those of the latest prompts; one of Stable
    Diffusion takes 0.23 MB, one of SDXL 0.61."""
    text_encoders: Literal["stay", "retire"] = "stay"
    """`retire`: samplers, learner and evaluator encode all their prompts when they start and then
    free the memory that the text encoders take on their device."""
    vae_slicing: bool = False
    """Decode picture by picture, for less memory."""
    vae_tiling: bool = False
    """Decode large pictures in overlapping tiles, for less memory; blends their seams, so that
    pixels differ a little."""

    @property
    def size(self) -> tuple[int, int] | None:
        """Height and width of pictures, where they are set."""
        return None if self.height is None or self.width is None else (self.height, self.width)

    @model_validator(mode="after")
    def _parts_fit(self) -> Self:
        if (self.height is None) != (self.width is None):
            raise ValueError(
                f"height is {self.height} and width is {self.width}; give both or neither"
            )
        if self.lcm_lora is not None and not self.is_few_step:
            raise ValueError(
                f"lcm_lora makes a model of few steps, and num_steps is {self.num_steps}; set it "
                "to 1, 2, 3, 4 or 8, or leave lcm_lora out (the consistency model of sqdf is "
                "method.clean.lora)"
            )
        if self.lcm_lora is not None and self.sampler == "ancestral":
            raise ValueError(
                "lcm_lora makes a consistency model, and sampler is ancestral; leave one out"
            )
        if self.sampler != "auto" and not self.is_few_step:
            raise ValueError(
                f"sampler {self.sampler} is for models of few steps, and num_steps is "
                f"{self.num_steps}; leave it out"
            )
        return self

    @property
    def is_few_step(self) -> bool:
        """Whether the policy is a model of few steps and not a chain of small ones."""
        return self.num_steps <= FEW_STEPS

    @property
    def is_guided(self) -> bool:
        """Whether networks are called on doubled rows, for classifier-free guidance."""
        return not self.is_few_step and self.guidance_scale != 1

    @field_validator("lora_targets")
    @classmethod
    def _something_is_trained(cls, value: str | tuple[str, ...]) -> str | tuple[str, ...]:
        if not value:
            raise ValueError("must be attention, all or a list with at least one module's name")
        return value
