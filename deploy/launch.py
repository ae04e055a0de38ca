"""`python -m deploy.launch CONFIG a.b=value ...`: what a Ray job runs.

    --check    validate everything, print the plan, start nothing
    --resume   continue the run of this name from its newest checkpoint
    --or-resume  begin the run, or continue it if it has begun: for schedulers that submit again
    --schema   print the table of settings

Heavy imports come after the config has been found good. Exit status: 0 trained to the end, or ended
by `limits.max_wall_s`, 1 the run failed, 2 something given is wrong, 130 stopped by a signal.
"""

import argparse
import logging
import os
import sys
from collections.abc import Sequence

from deploy.run.job_log import set_up
from deploy.run.leaving import leave
from deploy.run.plan import check_environment, describe, has_begun
from deploy.settings.problems import ConfigError
from deploy.settings.run_config import load_config
from deploy.settings.table import schema_table

log = logging.getLogger(__name__)
_USAGE_ERROR = 2


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; its exit status."""
    options = _options(arguments)
    set_up()
    if options.schema:
        sys.stdout.write(schema_table())
        return 0
    try:
        config = load_config(options.config, options.overrides)
    except ConfigError as error:
        sys.stderr.write(f"{error}\n")
        return _USAGE_ERROR
    resume = options.resume or (options.or_resume and has_begun(config, os.environ))
    if problems := check_environment(config, os.environ, resume=resume):
        sys.stderr.write("\n".join(problems) + "\n")
        return _USAGE_ERROR
    if options.check:
        sys.stdout.write(describe(config) + "\n")
        return 0
    from deploy.run.controller import Controller
    from deploy.run.prompt_checks import pinned, readable_prompts

    prompts, _ = readable_prompts(config)
    return Controller(pinned(config, prompts), os.environ, resume=resume).run()


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m deploy.launch",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("config", nargs="?", help="a preset, such as deploy/configs/smoke.yaml")
    parser.add_argument("overrides", nargs="*", metavar="a.b=value", help="replaces one setting")
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--or-resume", action="store_true")
    parser.add_argument("--schema", action="store_true")
    options = parser.parse_args(arguments)
    if options.config is None and not options.schema:
        parser.error("name a config, such as deploy/configs/shapes-lasro.yaml")
    return options


if __name__ == "__main__":
    leave(main())
