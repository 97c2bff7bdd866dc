"""The command line.  torch is imported only by what needs it, so that help and config errors come back at once."""

from __future__ import annotations

import argparse
import json
import sys
import textwrap
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from accord.errors import Failed, Interrupted, UserError
from accord.pipeline.command import add_pipeline
from accord.registry.command import add_commands as add_models

if TYPE_CHECKING:
    from pydantic import BaseModel

    from accord.config.settings import Stage

OVERVIEW = """\
accord runs reinforcement learning from human feedback: base -> SFT -> reward model -> PPO and DPO -> comparison.

  accord run configs/pipeline.yaml            the whole way, on the small world, in minutes
  accord sft --config configs/rlhf_sft.yaml   one stage; what it needs and is not there is made first
  accord chat checkpoints/rlhf/ppo_lm         talk to what came out

A setting can be changed behind the config:  training.learning_rate=3e-5  model.base_model=my/folder
'accord STAGE --help' lists every setting of a stage."""

WHAT = {
    "demo": "write the small world's data",
    "pretrained": "take a pretrained model in: a folder, a .gguf file, a Hugging Face id",
    "base": "train a small base model",
    "sft": "supervised fine-tuning",
    "pairs": "sample replies and have an annotator prefer among them",
    "reward": "train a reward model on preferences",
    "ppo": "PPO: heads on a frozen model, a whole language model, or a Gymnasium task",
    "dpo": "DPO: preferences straight into the policy",
    "compare": "hold models against each other on held-out prompts",
    "fuse": "merge models into one: average, SLERP, task vectors, a step towards the reference",
}


class Formatter(argparse.RawDescriptionHelpFormatter):
    """Wide enough for the settings."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=28, width=110)


def settings_help(cls: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """One line for each setting: key, default, meaning."""
    from pydantic import BaseModel

    for name, field in cls.model_fields.items():
        inner = field.annotation
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            default = field.get_default(call_default_factory=True)
            yield from settings_help_of(inner, default, f"{prefix}{name}.")
        else:
            yield from _lines(f"{prefix}{name}", field.get_default(call_default_factory=True), field.description)


def settings_help_of(cls: type[BaseModel], default: Any, prefix: str) -> Iterator[str]:
    """The same for a section, with the defaults that this stage gives it."""
    for name, field in cls.model_fields.items():
        yield from _lines(f"{prefix}{name}", getattr(default, name), field.description)


def _lines(key: str, default: Any, description: str | None) -> list[str]:
    """Key and default, the meaning beside them, wrapped."""
    shown = "''" if default == "" else str(default)
    head = f"  {key + '=' + shown:<44} "
    return textwrap.wrap(description or "", 120, initial_indent=head, subsequent_indent=" " * 47) or [head.rstrip()]


def parser() -> argparse.ArgumentParser:
    """The commands."""
    top = argparse.ArgumentParser("accord", description=OVERVIEW, formatter_class=Formatter)
    commands = top.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, what in WHAT.items():
        stage = commands.add_parser(name, help=what, formatter_class=Formatter, add_help=False)
        stage.add_argument("-h", "--help", action="store_true", help="this text and every setting")
        stage.add_argument("--config", metavar="FILE", help="a YAML file; without it all defaults hold")
        stage.add_argument("--resume", action="store_true", help="go on from the saved state of an interrupted run")
        _common(stage)
        stage.set_defaults(act=run_one)
    add_pipeline(commands, Formatter, _common)
    chat = commands.add_parser("chat", help="talk to a model", formatter_class=Formatter)
    chat.add_argument(
        "model", metavar="MODEL", help="a stage's folder, a model folder, a .gguf file, or a name of the registry"
    )
    chat.add_argument("--temperature", type=float, default=0.7, help="0 takes the likeliest token (default 0.7)")
    chat.add_argument("--top-p", type=float, default=0.95, help="keep the likeliest tokens of this mass (default 0.95)")
    chat.add_argument("--max-new-tokens", type=int, default=256)
    chat.add_argument("--seed", type=int, default=0)
    chat.add_argument("--system", default="", help="what the model is told first")
    chat.add_argument("--debug", action="store_true", help="show tracebacks")
    chat.set_defaults(act=talk)
    config = commands.add_parser("config", help="show a resolved config, or its JSON Schema", formatter_class=Formatter)
    config.add_argument("what", choices=("show", "schema"))
    config.add_argument("stage", choices=tuple(WHAT), metavar="STAGE", help=", ".join(WHAT))
    config.add_argument("--config", metavar="FILE")
    _common(config)
    config.set_defaults(act=show_config)
    add_models(commands, Formatter)
    return top


def _common(command: argparse.ArgumentParser) -> None:
    command.add_argument("overrides", nargs="*", metavar="key=value", help="settings to change, dotted")
    command.add_argument("--debug", action="store_true", help="show tracebacks")


def run_one(options: argparse.Namespace) -> int:
    from accord.config.settings import CONFIGS

    kind = options.command
    if options.help:
        cls = CONFIGS[kind]
        print(f"usage: accord {kind} [--config FILE] [--resume] [key=value ...]\n\n{cls.__doc__}\n\nsettings:")
        print("\n".join(settings_help(cls)))
        return 0
    config = config_of(kind, options)
    from accord.pipeline.standalone import run_alone

    run_alone(kind, config, options.resume)
    print(next_step(kind, config))
    return 0


def config_of(kind: str, options: argparse.Namespace) -> Stage:
    """The stage's config from its file and overrides; for fuse the file may be mergekit's."""
    from accord.config.load import load
    from accord.config.settings import CONFIGS

    if kind == "fuse" and options.config:
        from accord.fusion.recipe import is_recipe, load_recipe

        if is_recipe(options.config):
            config, notes = load_recipe(options.config, options.overrides)
            for note in notes:
                print(f"accord: note: {note}", file=sys.stderr)
            return config
    return load(CONFIGS[kind], options.config, options.overrides)


def next_step(kind: str, config: Stage) -> str:
    """What to run next."""
    from accord.config.settings import PPOConfig

    folder = f"{config.out}/{config.name or kind}"
    after = {
        "demo": "accord base",
        "pretrained": f"accord chat {folder}",
        "base": "accord sft --config configs/rlhf_sft.yaml",
        "sft": "accord reward --config configs/reward_model.yaml, or accord dpo --config configs/dpo_train.yaml",
        "pairs": f"accord reward data.train={folder}",
        "reward": "accord ppo --config configs/ppo_train.yaml",
        "ppo": f"accord chat {folder}",
        "dpo": f"accord chat {folder}",
        "compare": "accord chat with the model you like best",
        "fuse": f"accord compare models.sft=sft models.fused={folder}; reward models: accord ppo reward.source={folder}",
    }
    if isinstance(config, PPOConfig) and config.model.policy != "language":
        return f"next: look at the curves in {config.logs}/{config.name or kind} (tensorboard, or metrics.jsonl)"
    return f"next: {after[kind]}"


def talk(options: argparse.Namespace) -> int:
    from accord.chat import chat

    return chat(options.model, options.temperature, options.top_p, options.max_new_tokens, options.seed, options.system)


def show_config(options: argparse.Namespace) -> int:
    from accord.config.load import to_yaml
    from accord.config.settings import CONFIGS

    cls = CONFIGS[options.stage]
    if options.what == "schema":
        print(json.dumps(cls.model_json_schema(), indent=2))
    else:
        print(to_yaml(config_of(options.stage, options)), end="")
    return 0


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """The options of a command line; its overrides may stand anywhere, which argparse alone does not take."""
    words, overrides = list(argv), []
    if words[:1] not in (["chat"], ["models"]):  # which have none
        overrides = [
            w
            for before, w in zip(["", *words], words, strict=False)
            if "=" in w and w[0] != "-" and before not in ("--config", "--set")
        ]
        words = [w for before, w in zip(["", *words], words, strict=False) if w not in overrides or before == "--set"]
    options = parser().parse_args(words)
    overrides += getattr(options, "set", [])
    if overrides:
        options.overrides = [*options.overrides, *overrides]
    return options


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command; returns 0, 1 where a stage of a pipeline failed, 2 for a mistake, 130 where the user stopped it."""
    options = parse(sys.argv[1:] if argv is None else argv)
    act: Callable[[argparse.Namespace], int] = options.act
    try:
        return act(options)
    except UserError as error:
        if options.debug:
            raise
        print(f"accord: {error}", file=sys.stderr)
        return 2
    except Failed as failed:
        print(f"accord: {failed}", file=sys.stderr)
        return 1
    except Interrupted as stopped:
        again = "run the same command again to go on" if options.command == "run" else "add --resume to go on"
        print(f"accord: {stopped} {again[0].upper()}{again[1:]}.", file=sys.stderr)
        return 130
    except KeyboardInterrupt:
        print("accord: stopped at once; what was saved before is kept.", file=sys.stderr)
        return 130


def main_of(stage: str) -> Callable[[], int]:
    """The main of one stage, for ``python -m``."""
    return lambda: main([stage, *sys.argv[1:]])


if __name__ == "__main__":
    sys.exit(main())
