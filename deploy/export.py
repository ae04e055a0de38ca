"""`python -m deploy.export RUN --out FOLDER`: a run's result as a folder to keep or to publish.

    python -m deploy.export runs/mine --out mine            # the adapter, or the UNet, and its card
    python -m deploy.export runs/mine --out mine --merge    # a whole pipeline: no adapter is left

A merged pipeline is loaded by `DiffusionPipeline.from_pretrained(FOLDER)` and draws what the
base pipeline draws with the adapter loaded, in float32 within rounding. Exit status: 0 written, 2
something given is wrong.
"""

import argparse
import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from deploy.report.card import Form, write_card
from deploy.run.files import CONFIG_FILE, SUMMARY_FILE
from deploy.run.job_log import set_up
from deploy.sample import Source, find_source, load
from deploy.settings.run_config import config_from_json

_USAGE_ERROR = 2


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; its exit status."""
    options = _options(arguments)
    set_up()
    try:
        export(options.run, options.out, merge=options.merge)
    except ValueError as error:
        sys.stderr.write(f"{error}\n")
        return _USAGE_ERROR
    sys.stdout.write(f"{options.out}\n")
    return 0


def export(run: Path, out: Path, *, merge: bool) -> None:
    """Writes the result of a run, with its card.

    Args:
        merge: a whole pipeline instead of the adapter or the UNet alone.

    Raises:
        ValueError: no run, no result, the base cannot be loaded, or something is in the way.
    """
    if not (run / CONFIG_FILE).is_file():
        raise ValueError(f"{run} is no run's folder: it has no {CONFIG_FILE}")
    source = find_source(run, before=False)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"--out {out} is there and not empty; name a new folder")
    config = config_from_json((run / CONFIG_FILE).read_text(encoding="utf-8"))
    form: Form = "pipeline" if merge else "adapter" if source.adapter else "unet"
    if merge:
        merged(source).save_pretrained(out)
    else:
        result = source.adapter or source.unet
        assert result is not None
        shutil.copytree(result, out, dirs_exist_ok=True)
    write_card(run, config, _summary(run), form, out)


def merged(source: Source) -> Any:
    """The source's pipeline with the adapter in its weights, in float32."""
    pipeline = load(source).to("cpu")
    if source.adapter is not None:
        pipeline.fuse_lora(components=["unet"])
        pipeline.unload_lora_weights()
    return pipeline


def _summary(run: Path) -> dict[str, Any]:
    """Empty for a run that wrote none."""
    try:
        return json.loads((run / SUMMARY_FILE).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise ValueError(f"{run / SUMMARY_FILE} is no JSON: {error}") from error


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m deploy.export",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("run", type=Path, help="a finished run's folder, such as runs/mine")
    parser.add_argument("--out", type=Path, required=True, help="folder to write; new or empty")
    parser.add_argument("--merge", action="store_true", help="a whole pipeline, without adapter")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
