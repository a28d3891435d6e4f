"""`earthbench new model NAME`: a package with a model of your own that passes its checks from the start."""

from __future__ import annotations

import argparse
import re
from importlib.resources import files
from pathlib import Path
from string import Template

from bench import registry
from bench.errors import ConfigError, DataError, NameClashError
from bench.files import replacing

_NAME = re.compile(r"^[a-z][a-z0-9_]*$")
# Template in bench/scaffold -> file of the package; $package is the import name.
_FILES = {
    "pyproject.toml.txt": "pyproject.toml",
    "tox.ini.txt": "tox.ini",
    "readme.md.txt": "README.md",
    "init.py.txt": "src/$package/__init__.py",
    "model.py.txt": "src/$package/model.py",
    "test_model.py.txt": "tests/test_$name.py",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the verb's arguments."""
    parser.add_argument("kind", choices=("model",))
    parser.add_argument("name", help="its registered name: lower case, digits, underscores")
    parser.add_argument("--out", type=Path, help="folder to make (default: ./earthbench-NAME)")


def run(options: argparse.Namespace) -> int:
    """Writes the package and says what to do next."""
    name = options.name
    if not _NAME.match(name):
        raise ConfigError(f"name {name!r}: expected a-z, 0-9 and _, beginning with a letter")
    if name in registry.names("model"):
        raise NameClashError(f"model {name!r} is registered already: {registry.find('model', name).origin}")
    out = (options.out or Path(f"earthbench-{name.replace('_', '-')}")).expanduser()
    if out.exists() and any(out.iterdir()):
        raise DataError(f"{out} is there already and not empty; give another folder with --out")
    package = f"earthbench_{name}"
    words = {
        "name": name,
        "package": package,
        "distribution": package.replace("_", "-"),
        "class_name": "".join(part.capitalize() for part in name.split("_")),
    }
    for template, target in _FILES.items():
        text = (files("bench") / "scaffold" / template).read_text(encoding="utf-8")
        with replacing(out / Template(target).substitute(words)) as part:
            part.write_text(Template(text).substitute(words), encoding="utf-8")
    print(f"made {out}: the model is in src/{package}/model.py")
    print(f"next: pip install -e {out} && earthbench check {name} && pytest {out}")
    return 0
