"""The command line.  torch is imported only where it is needed, so that help and config errors are immediate."""

from __future__ import annotations

import argparse
import json
import platform
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from accord.command_line import Parser, parse_words
from accord.data_report.command import add_command as add_data
from accord.errors import Failed, Interrupted, UserError, Waiting, require_platform, stopped_at_once
from accord.feedback.command import add_commands as add_feedback
from accord.labeling.command import add_command as add_label
from accord.pipeline.command import add_pipeline
from accord.plots.command import add_command as add_plot
from accord.registry.command import add_commands as add_models
from accord.runtime.launcher import is_launched
from accord.runtime.output import discard, lasting_output, open_streams
from accord.stage_kinds.kind import StageKind
from accord.stage_kinds.table import STAGE_KINDS
from accord.starter.command import add_command as add_init

if TYPE_CHECKING:
    from accord.config.common import Stage

OVERVIEW = """\
Reinforcement learning from human feedback: base -> SFT -> reward model -> PPO and DPO -> comparison.

  accord init my_first_run                    write a starter: config, ten rows of data, a reward, a README
  accord run configs/pipeline.yaml            run the whole pipeline on the small world, in minutes
  accord sft --config configs/rlhf_sft.yaml   run one stage, and first the stages it needs
  accord chat checkpoints/rlhf/ppo_lm         chat with the result

Exit codes: 0 done, 1 a stage failed, 2 a mistake of the user, 3 a stage waits for people, 130 stopped.

A path that begins with configs/ and is not in the current folder is the file that comes with accord
('accord init --list' shows them all), so these commands work in any folder.

Settings follow the config as key=value:  training.learning_rate=3e-5  model.base_model=my/folder
'accord STAGE --help' lists the settings of a stage."""


class Formatter(argparse.RawDescriptionHelpFormatter):
    """Help with wide columns."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=28, width=110)


def parser() -> Parser:
    """The parser of all commands."""
    top = Parser("accord", description=OVERVIEW, formatter_class=Formatter)
    top.add_argument("--version", action="store_true", help="show the versions of accord, Python and torch")
    top.set_defaults(act=show_help, debug=False)
    commands = top.add_subparsers(dest="command", metavar="COMMAND")
    for kind in STAGE_KINDS.values():
        stage = commands.add_parser(kind.name, help=kind.help, formatter_class=Formatter, add_help=False)
        stage.add_argument("-h", "--help", action="store_true", help="show this help and every setting")
        stage.add_argument("--config", metavar="FILE", help="YAML file with settings (default: all defaults)")
        stage.add_argument("--resume", action="store_true", help="continue an interrupted run from its saved state")
        stage.add_argument("--dry-run", action="store_true", help="show the plan and the memory it takes; run nothing")
        if kind.name == "ppo":
            replay = "repeat a run on Ray from its ledger (or its folder), on this machine, into <name>_replay"
            stage.add_argument("--replay", metavar="LEDGER", help=replay)
        _common(stage)
        stage.set_defaults(act=run_one)
    add_pipeline(commands, Formatter, _common)
    chat = commands.add_parser("chat", help="chat with a model", formatter_class=Formatter)
    chat.add_argument(
        "model",
        metavar="MODEL",
        help="a stage's folder, a model folder, a .gguf file, a name in the registry, a Hugging Face id",
    )
    chat.add_argument("--temperature", type=float, default=0.7, help="sampling temperature; 0 is greedy (default 0.7)")
    chat.add_argument(
        "--top-p", type=float, default=0.95, help="nucleus sampling: probability mass to sample from (default 0.95)"
    )
    chat.add_argument("--max-new-tokens", type=int, default=256, help="maximum tokens of a reply (default 256)")
    chat.add_argument("--seed", type=int, default=0, help="seed of the sampling (default 0)")
    chat.add_argument("--system", default="", help="system message")
    chat.add_argument("--debug", action="store_true", help="show tracebacks")
    chat.set_defaults(act=run_chat)
    config = commands.add_parser(
        "config", help="show a stage's resolved config or its JSON Schema", formatter_class=Formatter
    )
    config.add_argument("what", choices=("show", "schema"), metavar="WHAT", help="show or schema")
    config.add_argument("stage", choices=tuple(STAGE_KINDS), metavar="STAGE", help=", ".join(STAGE_KINDS))
    config.add_argument("--config", metavar="FILE", help="YAML file with settings (default: all defaults)")
    _common(config)
    config.set_defaults(act=show_config)
    add_models(commands, Formatter)
    add_feedback(commands, Formatter)
    add_label(commands, Formatter)
    add_data(commands, Formatter)
    add_plot(commands, Formatter)
    add_init(commands, Formatter)
    return top


def _common(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "overrides", nargs="*", default=[], metavar="key=value", help="settings to override, as dotted keys"
    )
    command.add_argument("--debug", action="store_true", help="show tracebacks")


def run_one(options: argparse.Namespace) -> int:
    kind = STAGE_KINDS[options.command]
    if options.help:
        from accord.config.help import settings_help

        usage = f"usage: accord {kind.name} [--config FILE] [--resume] [--dry-run] [key=value ...]"
        print("\n".join([usage, "", *settings_help(kind.settings)]))
        return 0
    config = config_of(kind.name, options)
    if getattr(options, "replay", None):
        config = as_replay(kind, config, options.replay)
    if options.dry_run:
        from accord.pipeline.dry_run import dry_run

        dry_run(kind.name, config)
        return 0
    from accord.pipeline.standalone import run_alone

    with lasting_output():
        run_alone(kind.name, config, options.resume)
        print(f"next: {kind.next_words(config)}")
    return 0


def as_replay(kind: StageKind, config: Stage, ledger: str) -> Stage:
    """The config of the run that repeats the one of a ledger.  Raises UserError where the settings have no such runs."""
    from accord.config.load import build

    values = config.model_dump()
    if "replay" not in values.get("rollout", {}):
        raise UserError(
            "--replay repeats PPO on a whole language model (model.policy=language), which this config is not."
        )
    values["name"] = f"{config.name or kind.name}_replay"
    values["rollout"] = {**values["rollout"], "replay": ledger}
    return build(type(config), values, {"rollout.replay": "--replay"}, "the command line")


def config_of(kind: str, options: argparse.Namespace) -> Stage:
    """The stage's config from its file and overrides; for fuse the file may be mergekit's."""
    from accord.config.load import load

    if kind == "fuse" and options.config:
        from accord.fusion.recipe import is_recipe, load_recipe

        if is_recipe(options.config):
            config, notes = load_recipe(options.config, options.overrides)
            for note in notes:
                print(f"accord: note: {note}", file=sys.stderr)
            return config
    return load(STAGE_KINDS[kind].settings, options.config, options.overrides)


def run_chat(options: argparse.Namespace) -> int:
    from accord.chat import chat

    return chat(options.model, options.temperature, options.top_p, options.max_new_tokens, options.seed, options.system)


def show_config(options: argparse.Namespace) -> int:
    from accord.config.load import to_yaml

    if options.what == "schema":
        print(json.dumps(STAGE_KINDS[options.stage].settings.model_json_schema(), indent=2))
    else:
        from accord.pipeline.suited import suited

        print(to_yaml(suited(options.stage, config_of(options.stage, options)).config), end="")
    return 0


def show_help(options: argparse.Namespace) -> int:
    """What ``accord`` alone shows, and ``accord --version``."""
    if options.version:
        print(version_line())
    else:
        parser().print_help()
    return 0


def version_line() -> str:
    """The versions of accord and what results depend on, read without importing it."""
    from importlib.metadata import PackageNotFoundError, version

    import accord

    found = [f"accord {accord.__version__}", f"Python {platform.python_version()}"]
    for package in ("torch", "transformers"):
        try:
            found.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            found.append(f"no {package}")
    return f"{', '.join(found)} ({platform.system()} {platform.machine()})"


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """The options of a command line.  Raises UserError for every mistake in it."""
    return parse_words(parser(), argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command; returns the exit code.

    0, 1 (a stage failed), 2 (a user error), 3 (a stage waits for people), 130 (interrupted) or 141 (the reader of the
    output, such as ``head``, closed it; training goes on then).
    """
    words = sys.argv[1:] if argv is None else list(argv)
    open_streams()
    try:
        try:
            return _run(words)
        finally:
            sys.stdout.flush()
    except OSError as error:
        if error.filename:
            raise
        discard(sys.stdout, error)  # of the output, which Python flushes once more at exit
        return 141 if isinstance(error, BrokenPipeError) else 2


def _run(words: Sequence[str]) -> int:
    debug = False
    try:
        require_platform()
        options = parse(words)
        debug = options.debug
        act: Callable[[argparse.Namespace], int] = options.act
        if not is_launched():
            return act(options)
        from accord.pipeline.launched import act_as_rank

        return act_as_rank(lambda: act(options), works=options.command == "run" or options.command in STAGE_KINDS)
    except UserError as error:
        if debug:
            raise
        print(f"accord: {error}", file=sys.stderr)
        return 2
    except Failed as failed:
        print(f"accord: {failed}", file=sys.stderr)
        return 1
    except Waiting as waiting:
        again = "run the same command again" if words[0] == "run" else "run it again"
        print(f"accord: {waiting} To go on, {again}.", file=sys.stderr)
        return 3
    except Interrupted as stopped:
        again = "run the same command again to resume" if words[0] == "run" else "add --resume to resume"
        print(f"accord: {stopped} {again[0].upper()}{again[1:]}.", file=sys.stderr)
        return 130
    except KeyboardInterrupt:
        print(stopped_at_once(words), file=sys.stderr)
        return 130
    except OSError as error:  # the system refuses a file or folder that the user named
        from accord.pipeline.failure import sentence

        if debug or not error.filename or not (reason := sentence(error)):  # without a file it is the output's
            raise
        print(f"accord: {reason}", file=sys.stderr)
        return 2
    except Exception:
        print("accord: this looks like a bug of accord; please report it with the lines below.", file=sys.stderr)
        raise


def main_of(stage: str) -> Callable[[], int]:
    """The entry point of one stage, for ``python -m``."""
    return lambda: main([stage, *sys.argv[1:]])


if __name__ == "__main__":
    sys.exit(main())
