"""`python -m deploy.bench.gpu CONFIG [a.b=value ...]`: how fast and how large a run's networks are.

    --stages sampler,beside,decode,surrogate,policy    which; default: all that the config has.
                   `beside` is the sampler whose adapter bf16 cannot add to its weights
    --repeats N    calls that the medians are taken of, after one that is not counted
    --most N       largest size of a sweep: 1, 2, 4, … rows at once, up to N or to no more memory
    --device cpu   on processors, for networks as small as those of deploy/configs/smoke-sqdf.yaml

Networks have the sizes of the config's model and random weights, so that neither hub nor files
are asked; they are run by the classes that samplers, reward servers and the learner are made of.
Beside images and steps a second stand operations a second, as `deploy.doctor --plan` counts them,
with their share of what products of large matrices reach on the same device, without (MFU) and
with (HFU) what checkpointing computes again, and the most memory beside that plan's. One process,
one GPU, one rank.

Exit status: 0 all was measured, 1 something was not, 2 what is given is wrong or has no GPU here.
"""

import argparse
import json
import logging
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from deploy.doctor.units import in_bytes, in_flops
from deploy.run.job_log import set_up
from deploy.settings.run_config import RunConfig, load_config

# Not __name__, which is __main__ here.
log = logging.getLogger("deploy.bench.gpu")
STAGE_NAMES = ("sampler", "beside", "decode", "surrogate", "policy")
_MOST_PARAMS_ON_CPU = 50_000_000
_ALWAYS = ("learner.ranks=1", "pace=free", "name=bench")
_GPU_KEYS = ("gpu", "gpu_memory_gib", "driver", "cuda", "cudnn")


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; its exit status."""
    options = _options(arguments)
    if options.device == "cpu":
        # DeepSpeed takes a GPU wherever there is one; before torch looks for them.
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    set_up()
    try:
        config = load_config(options.config, [*options.overrides, *_ALWAYS])
        return _run(config, options)
    except ValueError as error:
        sys.stderr.write(f"{error}\n")
        return 2


def _run(config: RunConfig, options: argparse.Namespace) -> int:
    import torch

    from deploy.doctor.meta_networks import Networks, parameters_of

    networks = Networks(config)
    if options.device == "cuda" and not torch.cuda.is_available():
        sys.stderr.write(_without_gpu(config, networks, options) + "\n")
        return 2
    params = parameters_of(networks.base)
    if options.device == "cpu" and params > _MOST_PARAMS_ON_CPU:
        raise ValueError(
            f"model.path: the UNet has {params / 1e6:,.0f} M parameters, which take a processor "
            f"hours; --device cpu is for at most {_MOST_PARAMS_ON_CPU / 1e6:.0f} M: leave it out "
            "where a GPU is, or give model.path=deploy/shapes/pipelines/base"
        )
    from deploy.bench import results
    from deploy.bench.gpu_run import GpuBench

    before = {**results.machine(), **_gpu(options.device)}
    with (
        tempfile.TemporaryDirectory() as folder,
        GpuBench(
            options.config,
            [*options.overrides, *_ALWAYS, *_local_lora(config, Path(folder))],
            networks,
            device=options.device,
            repeats=options.repeats,
        ) as bench,
    ):
        for stage in options.stages:
            bench.stage(stage)
            for size in _doubled(options.most):
                if not bench.sized(stage, size):
                    break
    name = f"gpu-{Path(options.config).stem}"
    settings = {
        "config": str(options.config),
        "overrides": options.overrides,
        "repeats": options.repeats,
        "device": options.device,
        "not_measured": bench.not_measured,
        "plan": bench.plan,
    }
    results.write(
        options.out,
        name,
        bench.rows,
        machine_before=before,
        settings=settings,
        command="deploy.bench.gpu",
    )
    log.info("results: %s", results.write_page(options.out))
    medians = {f"{row.work}, {row.way}, {row.unit}": row.rate["median"] for row in bench.rows}
    sys.stdout.write(json.dumps({name: medians}, ensure_ascii=False) + "\n")
    for work, reason in bench.not_measured.items():
        sys.stderr.write(f"not measured: {work}: {reason}\n")
    return int(bench.failed)


def _doubled(most: int) -> Iterator[int]:
    size = 1
    while size <= most:
        yield size
        size *= 2


def _local_lora(config: RunConfig, folder: Path) -> list[str]:
    """A folder in place of an LCM-LoRA that would be downloaded."""
    lora = config.method.consistency_lora
    if lora is None or Path(lora).is_dir():
        return []
    from deploy.bench.random_parts import save_consistency_lora

    path = save_consistency_lora(config.model.path, lora, folder)
    return [f"method.clean.lora={path}"]


def _without_gpu(config: RunConfig, networks: Any, options: argparse.Namespace) -> str:
    """What is missing, and what would be measured."""
    from deploy.bench.gpu_stages import STAGES
    from deploy.doctor.size_plan import size_plan

    plan = size_plan(config, networks)
    lines = [
        "no GPU that torch can use is here: run this where one is, or with --device cpu and "
        "deploy/configs/smoke-sqdf.yaml. There it would measure, by the plan,"
    ]
    for name in options.stages:
        stage = STAGES[name]
        if reason := stage.absence(config):
            lines.append(f"  {name:<9}  nothing: {reason}")
            continue
        flops = sum(stage.flops(config, plan, "cpu").values())
        memory = sum(stage.memory(config, plan).values())
        lines.append(f"  {name:<9}  {stage.work(config)}: {in_flops(flops)}, {in_bytes(memory)}")
    lines.append(f"  each {options.repeats} times, and in sizes of 1, 2, 4, … to {options.most}")
    return "\n".join(lines)


def _gpu(device: str) -> dict[str, Any]:
    """What a rate on a GPU depends on."""
    import torch

    if device == "cpu":
        return {}
    told = torch.cuda.get_device_properties(0)
    values = (
        told.name,
        round(told.total_memory / 2**30, 1),
        _driver(),
        torch.version.cuda or torch.version.hip,
        torch.backends.cudnn.version(),
    )
    return dict(zip(_GPU_KEYS, values, strict=True))


def _driver() -> str:
    """Of NVIDIA's tool; torch does not tell it."""
    try:
        done = subprocess.run(
            ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"],
            capture_output=True,
            text=True,
            timeout=30,
        )
    except (OSError, subprocess.TimeoutExpired):
        return "unknown"
    return done.stdout.strip().splitlines()[0] if done.stdout.strip() else "unknown"


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m deploy.bench.gpu",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("config", help="a preset, such as deploy/configs/sd15-sqdf-aesthetic.yaml")
    parser.add_argument("overrides", nargs="*", metavar="a.b=value", help="replaces one setting")
    parser.add_argument("--stages", default=",".join(STAGE_NAMES))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--most", type=int, default=64)
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_intermixed_args(arguments)
    options.stages = options.stages.split(",")
    if unknown := [name for name in options.stages if name not in STAGE_NAMES]:
        parser.error(f"--stages: {', '.join(unknown)}; there are {', '.join(STAGE_NAMES)}")
    if options.repeats < 1 or options.most < 0:
        parser.error("--repeats is at least 1, --most at least 0")
    return options


if __name__ == "__main__":
    sys.exit(main())
