"""One benchmark of a config's stages on one device: sizes, ways and what could not be measured."""

import logging
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Self

import torch

from deploy.bench.gpu_measure import (
    allocated,
    ceiling_rows,
    ceilings,
    emptied,
    measured,
    memory_rows,
    utilisation_rows,
)
from deploy.bench.gpu_stages import STAGES, Stage
from deploy.bench.timing import Row, spread
from deploy.doctor.flop_plan import flop_plan
from deploy.doctor.meta_networks import Networks
from deploy.doctor.size_plan import size_plan
from deploy.settings.run_config import RunConfig, load_config
from reward_servers.base import reason_of

log = logging.getLogger(__name__)
OUT_OF_MEMORY = "out of memory"


class GpuBench:
    """Measures stage by stage; what fails is noted and the rest goes on.

        with GpuBench("deploy/configs/smoke-sqdf.yaml", [], networks, ...) as bench:
            bench.stage("sampler")

    Args:
        overrides: of the config, as all that is measured has them.
        networks: of it, without numbers.

    Attributes:
        rows: of the result.
        not_measured: why, by what.
        failed: whether something that the config has was not measured at its own size.
        plan: of the config as it is.
    """

    def __init__(
        self,
        config: Path | str,
        overrides: Sequence[str],
        networks: Networks,
        *,
        device: str,
        repeats: int,
        stages: dict[str, Stage] | None = None,
    ) -> None:
        self._path = config
        self._overrides = list(overrides)
        self._networks = networks
        self._device = device
        self._repeats = repeats
        self._stages = STAGES if stages is None else stages
        self._config = load_config(config, self._overrides)
        self._measured: set[str] = set()
        self._open, self._is_rank = ExitStack(), False
        self.not_measured: dict[str, str] = {}
        self.failed = False
        self.plan = size_plan(self._config, networks)
        rates = ceilings(device, repeats=repeats)
        self._ceiling = {name: spread(found)["median"] for name, found in rates.items()}
        self.rows: list[Row] = ceiling_rows(rates, device)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self._open.close()

    def stage(self, name: str) -> None:
        """At the config's own size, and on a GPU compiled by torch as well."""
        if reason := self._stages[name].absence(self._config):
            self.not_measured[name] = reason
            return
        if self._try(name, self._config, self.plan, name) is not None:
            self.failed = True
            return
        if self._device == "cuda" and name in ("sampler", "policy"):
            compiled = load_config(self._path, [*self._overrides, "model.compile=true"])
            self._try(name, compiled, self.plan, f"{name}, compiled", suffix=", compiled")

    def sized(self, name: str, size: int) -> bool:
        """With so many rows at once; False where nothing larger is to be tried.

        A size that the config refuses, or that cuts no batch evenly, is left out.
        """
        if self._stages[name].absence(self._config):
            return False
        overrides = self._stages[name].size(self._config, size)
        if overrides is None:
            return True
        try:
            config = load_config(self._path, [*self._overrides, *overrides])
        except ValueError as error:
            self.not_measured[f"{name}, size {size}"] = str(error)
            return True
        if self._stages[name].work(config) in self._measured:
            return True
        plan = size_plan(config, self._networks)
        return self._try(name, config, plan, f"{name}, size {size}") is None

    def _try(
        self, name: str, config: RunConfig, plan: dict[str, Any], what: str, *, suffix: str = ""
    ) -> str | None:
        """Measures it; why not, if it cannot be."""
        stage = self._stages[name]
        log.info("%s", what)
        try:
            if stage.is_rank:
                self._join()
            with emptied(self._device):
                rows = self._rows(stage, config, plan, suffix)
        except torch.OutOfMemoryError:
            reason = OUT_OF_MEMORY
        except Exception as error:
            if not isinstance(error, ValueError):
                log.exception("%s failed", what)
            reason = reason_of(error)
        else:
            self.rows += rows
            self._measured.add(stage.work(config) + suffix)
            return None
        self.not_measured[what] = reason
        return reason

    def _join(self) -> None:
        """Once: DeepSpeed cannot join again what it has left."""
        if not self._is_rank:
            from deploy.bench.learner_steps import alone

            self._open.enter_context(alone())
            self._is_rank = True

    def _rows(
        self, stage: Stage, config: RunConfig, plan: dict[str, Any], suffix: str
    ) -> list[Row]:
        before = allocated(self._device)
        call = stage.prepare(config, self._device)
        found = measured(call, repeats=self._repeats, device=self._device, before=before)
        del call
        work = stage.work(config) + suffix
        rates = [
            Row(
                work,
                "fleetune",
                f"{unit}/s",
                spread([amount / seconds for seconds in found.seconds_R]),
                None,
            )
            for unit, amount in stage.amounts(config).items()
        ]
        computed = stage.flops(config, plan, self._device)
        flops = stage.flops(config, self._without_recomputing(config), self._device)
        return [
            *rates,
            Row(work, "fleetune", "s", spread(found.seconds_R), None),
            *utilisation_rows(work, found.seconds_R, flops, self._ceiling, computed=computed),
            *memory_rows(work, found, stage.memory(config, plan)),
        ]

    def _without_recomputing(self, config: RunConfig) -> dict[str, Any]:
        """A plan's operations, but for what gradient checkpointing computes a second time."""
        learner = config.learner.model_copy(update={"gradient_checkpointing": False})
        plain = config.model_copy(update={"learner": learner})
        return {"flops": flop_plan(plain, self._networks)}
