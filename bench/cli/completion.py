"""`earthbench completion bash|zsh|fish`: a script that completes verbs, flags, names, and keys of the config."""

from __future__ import annotations

import argparse
import importlib
import shlex
from collections.abc import Iterator

from bench import registry
from bench.cli.flags import Parser
from bench.cli.printing import print

SHELLS = ("bash", "zsh", "fish")
EXAMPLES = (
    'eval "$(earthbench completion bash)"   # in ~/.bashrc; zsh: in ~/.zshrc, after compinit',
    "earthbench completion fish > ~/.config/fish/completions/earthbench.fish",
)
_KINDS = {"table": "table", "model": "model", "task": "task"}
"""Flags that take a registered name, and its kind."""
_NAMES = {
    "table": ("table",), "reproduce": ("table",), "check": ("model", "task", "metric", "constraint"),
    "show": ("model", "task", "metric", "table", "constraint"), "compare": ("model",), "data": ("task",),
}  # fmt: skip
"""Verbs with registered names among their positional arguments, and the kinds of these names."""

_BASH = r"""_earthbench() {
    local word=${COMP_WORDS[COMP_CWORD]} before=${COMP_WORDS[COMP_CWORD-1]} key= words=
    [[ $word == = ]] && key=$before word=
    [[ $before == = ]] && key=${COMP_WORDS[COMP_CWORD-2]}
    if [[ -n $key ]]; then
        case $key in
KEYS
        esac
    elif [[ $COMP_CWORD == 1 ]]; then
        words='VERBS'
    else
        case "${COMP_WORDS[1]} $before" in
FLAGS
        *) case ${COMP_WORDS[1]} in
WORDS
        esac;;
        esac
    fi
    COMPREPLY=($(compgen -W "$words" -- "$word"))
    [[ -z $COMPREPLY ]] && COMPREPLY=($(compgen -f -- "$word"))
    [[ ${COMPREPLY[0]} == *= ]] && compopt -o nospace
}
complete -F _earthbench earthbench"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the verb's arguments."""
    parser.add_argument("shell", choices=SHELLS)


def run(options: argparse.Namespace) -> int:
    """Prints the script, which completes the names registered now, those of installed plugins included."""
    print(_fish() if options.shell == "fish" else _bash(zsh=options.shell == "zsh"))
    return 0


def words_of(verb: str, module: str) -> list[str]:
    """Returns what may follow a verb: its flags, choices, registered names, and keys of the config."""
    from bench.cli.main import VERBS

    parser = Parser(add_help=False)
    importlib.import_module(module).add_arguments(parser)
    found = ["--help"]
    for action in parser._actions:
        found += [flag for flag in action.option_strings if flag.startswith("--")]
        if not action.option_strings and action.choices is not None:
            found += map(str, action.choices)
        if action.dest == "overrides":
            found += [f"{key}=" for key in _keys()]
    for kind in _NAMES.get(verb, ()):
        found += registry.names(kind)  # type: ignore[arg-type]
    return list(dict.fromkeys(found if verb != "help" else list(VERBS)))


def values_of(module: str) -> dict[str, list[str]]:
    """Returns what may follow a verb's flags, by flag: choices, or registered names."""
    parser = Parser(add_help=False)
    importlib.import_module(module).add_arguments(parser)
    found: dict[str, list[str]] = {}
    for action in parser._actions:
        known = registry.names(action.dest) if action.dest in _KINDS else action.choices  # type: ignore[arg-type]
        found |= {flag: [str(one) for one in known] for flag in action.option_strings if known}
    return found


def _keys() -> Iterator[str]:
    """Yields the keys of the config."""
    from bench.config import Config

    for name, field in Config.model_fields.items():
        inner = getattr(field.annotation, "model_fields", None)
        yield name
        yield from (f"{name}.{key}" for key in inner or ())


def _values() -> dict[str, list[str]]:
    return {"model": registry.names("model"), "task": registry.names("task"), "device": ["auto", "cpu", "cuda", "mps"],
            "split": ["train", "val", "test", "all"]}  # fmt: skip


def _bash(*, zsh: bool) -> str:
    from bench.cli.main import VERBS

    keys = [f"            {key}) words={shlex.quote(' '.join(values))};;" for key, values in _values().items()]
    words = [
        f"            {verb}) words={shlex.quote(' '.join(words_of(verb, module)))};;"
        for verb, (module, _) in VERBS.items()
    ]
    script = _BASH.replace("KEYS", "\n".join(keys)).replace("VERBS", " ".join([*VERBS, "--help", "--version"]))
    flags = [
        f"        '{verb} {flag}') words={shlex.quote(' '.join(values))};;"
        for verb, (module, _) in VERBS.items()
        for flag, values in values_of(module).items()
    ]
    script = script.replace("FLAGS\n", "\n".join(flags) + "\n").replace("WORDS\n", "\n".join(words) + "\n")
    return f"autoload -U +X bashcompinit && bashcompinit\n{script}" if zsh else script


def _fish() -> str:
    from bench.cli.main import VERBS

    lines = ["complete -c earthbench -n __fish_use_subcommand -f"]
    for verb, (module, summary) in VERBS.items():
        lines.append(f"complete -c earthbench -n __fish_use_subcommand -f -a {verb} -d {shlex.quote(summary)}")
        words = words_of(verb, module)
        words += [f"{key}={value}" for key, values in _values().items() if f"{key}=" in words for value in values]
        lines.append(
            f"complete -c earthbench -n '__fish_seen_subcommand_from {verb}' -a {shlex.quote(' '.join(words))}"
        )
        lines += [
            f"complete -c earthbench -n '__fish_seen_subcommand_from {verb}' -l {flag.removeprefix('--')} -x "
            f"-a {shlex.quote(' '.join(values))}"
            for flag, values in values_of(module).items()
            if flag.startswith("--")
        ]
    return "\n".join(lines)
