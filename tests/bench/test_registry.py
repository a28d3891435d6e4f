from __future__ import annotations

import subprocess
import sys
import textwrap
from importlib.metadata import EntryPoint, EntryPoints

import pytest

from bench import registry
from bench.cards import read_card
from bench.errors import BrokenPluginError, NameClashError, UnknownNameError


class _Distribution:
    def __init__(self, name: str) -> None:
        self.name, self.version = name, "1.0"


def _point(name: str, value: str, distribution: str, group: str = "earthbench.models") -> EntryPoint:
    point = EntryPoint(name, value, group)
    vars(point)["dist"] = _Distribution(distribution)
    return point


@pytest.fixture
def points(monkeypatch: pytest.MonkeyPatch) -> list[EntryPoint]:
    found: list[EntryPoint] = []
    monkeypatch.setattr(registry, "entry_points", lambda: EntryPoints(found))
    return found


@pytest.fixture
def plugin(tmp_path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(str(tmp_path))

    def write(module: str, source: str) -> None:
        (tmp_path / f"{module}.py").write_text(textwrap.dedent(source))

    return write


@pytest.mark.parametrize("kind", registry.KINDS)
def test_every_registered_name_loads_and_describes_itself(kind: registry.Kind) -> None:
    for name in registry.names(kind):
        entry = registry.find(kind, name)
        assert entry.load() is not None
        assert entry.card().summary not in ("", "(no description)"), name


@pytest.mark.parametrize(
    ("kind", "name", "near"),
    [
        ("model", "unett", "unet"),
        ("task", "sevr", "sevir"),
        ("metric", "skil", "skill"),
        ("table", "earthformer/sevr", "earthformer/sevir"),
    ],
)
def test_unknown_names_get_a_suggestion(kind: registry.Kind, name: str, near: str) -> None:
    with pytest.raises(UnknownNameError, match=f"Did you mean '{near}'"):
        registry.find(kind, name)


def test_a_name_clash_names_both_origins_and_affects_no_other_name(points: list[EntryPoint]) -> None:
    points += [
        _point("unet", "one.mod:A", "first"),
        _point("unet", "two.mod:B", "second"),
        _point("ok", "three:C", "third"),
    ]
    with pytest.raises(NameClashError, match=r"one\.mod:A \(first 1\.0\) and two\.mod:B \(second 1\.0\)"):
        registry.find("model", "unet")
    assert registry.find("model", "ok").distribution == "third"


def test_a_package_installed_at_run_time_is_found(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    assert "made_meanwhile" not in registry.names("model")
    info = tmp_path / "made_meanwhile-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: made-meanwhile\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[earthbench.models]\nmade_meanwhile = made:Model\n")
    assert registry.find("model", "made_meanwhile").origin == "made:Model (made-meanwhile 1.0)"


def test_a_distribution_found_twice_is_not_a_clash(points: list[EntryPoint]) -> None:
    points += [_point("unet", "one:A", "my-plugin"), _point("unet", "one:A", "my_plugin")]
    assert registry.find("model", "unet").value == "one:A"


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("import not_there_at_all\nclass Model: ...", "ModuleNotFoundError"),
        ("raise SystemExit(3)\nclass Model: ...", "SystemExit"),
        ("raise RuntimeError('no licence')\nclass Model: ...", "no licence"),
        ("class Other: ...", "AttributeError"),
    ],
)
def test_a_plugin_that_fails_at_import_gives_one_error_with_its_origin(
    points, plugin, source: str, reason: str
) -> None:
    module = f"broken_plugin_{abs(hash(source))}"
    plugin(module, source)
    points.append(_point("broken", f"{module}:Model", "bad-plugin"))
    with pytest.raises(BrokenPluginError, match=reason) as caught:
        registry.find("model", "broken").load()
    assert "bad-plugin" in str(caught.value)


def test_a_syntax_error_is_found_without_importing(points, plugin) -> None:
    plugin("syntactically_wrong", "class Model(:\n")
    points.append(_point("wrong", "syntactically_wrong:Model", "bad-plugin"))
    with pytest.raises(BrokenPluginError, match="SyntaxError"):
        registry.find("model", "wrong").card()


def test_a_card_follows_imports_and_base_classes(plugin) -> None:
    plugin(
        "card_base",
        '''
        class Base:
            """Base model."""
            presets = {"sevir": {"depth": 2}}
            def __init__(self, input_shape, target_shape, *, depth: int = 4, wide=None, **more): ...
        ''',
    )
    plugin("card_child", 'from card_base import Base\nclass Child(Base):\n    """A child.\n\n    More."""\n')
    plugin("card_front", "from card_child import Child as Exported\n")
    card = read_card("card_front:Exported")
    assert card.summary == "A child."
    assert card.parameters == {"depth": "4", "wide": "None"}
    assert card.presets == {"sevir": {"depth": 2}}


def test_a_card_knows_the_fields_of_an_options_class(plugin) -> None:
    plugin(
        "card_options",
        '''
        from dataclasses import dataclass
        @dataclass
        class Options:
            depth: int = 3
            width: int
        class Model:
            """A model."""
            options_class = "card_options:Options"
            def __init__(self, input_shape, target_shape, *, mode="a", **options): ...
        class Smaller(Model):
            """Its child."""
            def __init__(self, input_shape, target_shape, *, depth=1, **options): ...
        ''',
    )
    assert read_card("card_options:Model").parameters == {"depth": "3", "width": "required", "mode": "'a'"}
    card = read_card("card_options:Smaller")
    assert card.parameters["depth"] == "1" and "width" in card.parameters and not card.accepts_any_parameter


@pytest.mark.parametrize(
    "arguments",
    [
        ["list"],
        ["show", "model", "unet"],
        ["show", "task", "sevir"],
        ["show", "metric", "skill"],
        ["show", "table", "earthformer/sevir"],
        ["table", "earthformer/sevir"],
    ],
)
def test_light_commands_never_import_torch(arguments: list[str]) -> None:
    code = (
        "import sys; from bench.cli.main import main; "
        f"code = main({arguments!r}); print('torch' in sys.modules); sys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "False"


@pytest.mark.parametrize(
    ("versions", "words"),
    [((), None), (("v1",), None), (("v1", "v7"), None), (("v7",), "Upgrade earthbench"), (("v0",), "another release")],
)
def test_a_package_declares_its_interface_version(points, plugin, versions, words: str | None) -> None:
    plugin("dated", 'class Model:\n    """A model."""\n')
    points.append(_point("dated", "dated:Model", "my-models"))
    points.append(_point("unet", "baselines.unet:UNet", "earthbench"))
    points.extend(_point(version, "dated", "my-models", "earthbench.api") for version in versions)
    entry = registry.find("model", "dated")
    if words is None:
        assert entry.load().__name__ == "Model" and entry.card().summary == "A model."
        return
    for use in (entry.load, entry.card):
        with pytest.raises(BrokenPluginError, match=words) as caught:
            use()
        assert "my-models 1.0" in str(caught.value) and versions[0] in str(caught.value)
    assert registry.find("model", "unet").card().summary, "other distributions are not concerned"
