"""Result files: one JSON a benchmark, and one Markdown page of all that lie in the folder."""

import json
import os
import platform
import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil

from deploy.bench.timing import Row, as_json
from deploy.report.data import versions

PAGE = "README.md"
_PROCESSOR_KEYS = ("model name", "Hardware", "Model")


def machine() -> dict[str, Any]:
    """What a rate depends on, beside the software."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "processor": _processor(),
        "cores": usable,
        "memory_gb": round(psutil.virtual_memory().total / 1e9, 1),
        "load_1min": round(os.getloadavg()[0], 2),
    }


def write(
    folder: Path,
    name: str,
    rows: Sequence[Row],
    *,
    machine_before: Mapping[str, Any],
    settings: Mapping[str, Any],
    command: str = "deploy.bench",
) -> Path:
    """Writes a benchmark's file; `machine_before` is how the machine was before it began."""
    folder.mkdir(parents=True, exist_ok=True)
    content = {
        "benchmark": name,
        "time": time.strftime("%Y-%m-%d %H:%M:%S%z"),
        "command": shlex.join(["python", "-m", command, *sys.argv[1:]]),
        "machine": machine_before,
        "versions": versions(),
        "settings": settings,
        "rows": [as_json(row) for row in rows],
    }
    target = folder / f"{name}.json"
    target.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return target


def write_page(folder: Path) -> Path:
    """The page of every result file in the folder, so that one benchmark can be run again alone."""
    found = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"))]
    text = "\n".join(["# Benchmark results", "", _LEGEND, "", *map(_section, found)])
    target = folder / PAGE
    target.write_text(text, encoding="utf-8")
    return target


_LEGEND = (
    "Median of the repeats and, in brackets, their quartiles. The ways of one piece of work took "
    "turns; *ratio* is a way's rate over that of the last way of the same work, repeat by repeat. "
    "Made by `make bench`, and by the commands that are named."
)


def _section(content: Mapping[str, Any]) -> str:
    host, used = content["machine"], content["versions"]
    lines = [
        f"## {content['benchmark']}",
        "",
        f"{_gpu(host)}{host['processor']}, {host['cores']} cores, load {host['load_1min']} before "
        "it; "
        f"Python {used['python']}, torch {used.get('torch', '–')}; {content['time']}; "
        f"`{content['command']}`",
        "",
        "| work | way | rate | unit | ratio |",
        "|---|---|---:|---|---:|",
        *(_line(row) for row in content["rows"]),
        "",
    ]
    return "\n".join(lines)


def _gpu(host: Mapping[str, Any]) -> str:
    """Of a benchmark on one."""
    if "gpu" not in host:
        return ""
    return (
        f"{host['gpu']}, {host['gpu_memory_gib']} GiB, driver {host['driver']}, CUDA "
        f"{host['cuda']}, cuDNN {host['cudnn']}; "
    )


def _line(row: Mapping[str, Any]) -> str:
    ratio = "" if row["ratio"] is None else _text(row["ratio"])
    return f"| {row['work']} | {row['way']} | {_text(row['rate'])} | {row['unit']} | {ratio} |"


def _text(values: Mapping[str, float]) -> str:
    median, q1, q3 = (_number(values[key]) for key in ("median", "q1", "q3"))
    return median if q1 == q3 else f"{median} ({q1}–{q3})"


def _number(value: float) -> str:
    """Four digits, and no exponent for what a person reads."""
    return f"{value:,.0f}" if value >= 1000 else f"{value:.4g}"


def _processor() -> str:
    """Linux tells the model in /proc; `platform` often only the architecture."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    for line in lines:
        key, _, value = line.partition(":")
        if key.strip() in _PROCESSOR_KEYS and value.strip():
            return value.strip()
    return platform.processor() or platform.machine()
