"""`earthbench new KIND NAME`: a package of your own that passes its checks from the start."""

from __future__ import annotations

import argparse
import re
from importlib.resources import files
from pathlib import Path
from string import Template

from bench import registry
from bench.cli.printing import print
from bench.errors import ConfigError, DataError, NameClashError
from bench.files import replacing
from bench.plugins import API_VERSION

_NAME = re.compile(r"^[a-z][a-z0-9_]*$")
# Template in bench/scaffold -> file of the package; $package is the import name.
_PACKAGE = {
    "package/pyproject.toml.txt": "pyproject.toml",
    "package/tox.ini.txt": "tox.ini",
    "package/readme.md.txt": "README.md",
    "package/init.py.txt": "src/$package/__init__.py",
}
_OWN = {
    "model": {"model/model.py.txt": "src/$package/model.py", "model/test_model.py.txt": "tests/test_$name.py"},
    "task": {
        "task/task.py.txt": "src/$package/task.py",
        "task/data.py.txt": "src/$package/data.py",
        "task/test_task.py.txt": "tests/test_$name.py",
    },
    "metric": {"metric/metric.py.txt": "src/$package/metric.py", "metric/test_metric.py.txt": "tests/test_$name.py"},
    "table": {"table/table.py.txt": "src/$package/table.py", "table/test_table.py.txt": "tests/test_$name.py"},
    "constraint": {
        "constraint/constraint.py.txt": "src/$package/constraint.py",
        "constraint/test_constraint.py.txt": "tests/test_$name.py",
    },
}
EXAMPLES = (
    "earthbench new model my_model",
    "earthbench new task my_task --out my_task",
    "earthbench new table my_table",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the verb's arguments."""
    parser.add_argument("kind", choices=tuple(_OWN), help="what to write")
    parser.add_argument("name", help="its registered name: lower case, digits, underscores")
    parser.add_argument("--out", type=Path, help="folder to make (default: ./earthbench-NAME)")


def run(options: argparse.Namespace) -> int:
    """Writes the package and says what to do next."""
    name = options.name
    if not _NAME.match(name):
        raise ConfigError(f"name {name!r}: expected a-z, 0-9 and _, beginning with a letter")
    if name in registry.names(options.kind):
        origin = registry.find(options.kind, name).origin
        raise NameClashError(f"{options.kind} {name!r} is registered already: {origin}")
    out = (options.out or Path(f"earthbench-{name.replace('_', '-')}")).expanduser()
    if out.exists() and any(out.iterdir()):
        raise DataError(f"{out} already exists and is not empty; choose another folder with --out")
    package = f"earthbench_{name}"
    class_name = "".join(part.capitalize() for part in name.split("_"))
    words = {
        "kind": options.kind,
        "name": name,
        "api_version": str(API_VERSION),
        "package": package,
        "distribution": package.replace("_", "-"),
        "class_name": class_name,
        "attribute": name.upper() if options.kind == "table" else class_name,
        "check": f"earthbench {'table' if options.kind == 'table' else 'check'} {name}",
    }
    words["usage"] = Template(_template(f"{options.kind}/usage.txt")).substitute(words).rstrip()
    for template, target in {**_PACKAGE, **_OWN[options.kind]}.items():
        text = _template(template)
        with replacing(out / Template(target).substitute(words)) as part:
            part.write_text(Template(text).substitute(words), encoding="utf-8")
    print(f"made {out}: the {options.kind} is in src/{package}/{options.kind}.py")
    print(f"next: pip install -e '{out}[test]' && {words['check']} && pytest {out}")
    return 0


def _template(name: str) -> str:
    return (files("bench") / "scaffold" / name).read_text(encoding="utf-8")
