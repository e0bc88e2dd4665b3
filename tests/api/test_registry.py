"""The registry: real distributions on the path, listed without imports, loaded one by one."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from textwrap import dedent
from typing import Annotated, Any, Literal

import pytest

from hidra_cli.api import registry
from hidra_cli.api.options import options
from hidra_cli.api.registry import Plugin, find, load
from hidra_cli.errors import PluginError, UsageError, nearest

GOOD = """
    from hidra_cli.api import Dataset
    class Good(Dataset):
        api_version = 1
        title = "good"
        def classes(self, downloads):
            return []
    """

Install = Callable[..., None]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """`install(distribution, {name: value}, module=source)` adds a distribution to the path."""
    monkeypatch.delenv("HIDRA_PLUGINS", raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    before = set(sys.modules)

    def add(
        distribution: str,
        entries: dict[str, str],
        *,
        version: str = "1.2",
        kind: str = "dataset",
        **modules: str,
    ) -> None:
        info = tmp_path / f"{distribution.replace('-', '_')}-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(
            f"Metadata-Version: 2.1\nName: {distribution}\nVersion: {version}\n"
        )
        lines = "".join(f"{name} = {value}\n" for name, value in entries.items())
        (info / "entry_points.txt").write_text(f"[hidra.{kind}s]\n{lines}")
        record = ["METADATA", "entry_points.txt", "RECORD"]
        paths = [f"{info.name}/{name}" for name in record]
        for name, source in modules.items():
            (tmp_path / f"{name}.py").write_text(dedent(source))
            paths.append(f"{name}.py")
        (info / "RECORD").write_text("".join(f"{path},,\n" for path in paths))
        registry.plugins.cache_clear()

    registry.plugins.cache_clear()
    yield add
    registry.plugins.cache_clear()
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(tmp_path)):
            del sys.modules[name]


def labels(kind: registry.Kind) -> list[str]:
    return [plugin.label for plugin in registry.plugins(kind)]


def failure(name: str) -> PluginError:
    with pytest.raises(PluginError) as caught:
        load(find("dataset", name))
    assert caught.value.code == 4
    return caught.value


def test_the_built_ins_are_listed_first_and_by_name(install: Install) -> None:
    install("aaa-plugins", {"aardvark": "good_module:Good"}, good_module=GOOD)
    names = [plugin.name for plugin in registry.plugins("dataset")]
    assert names == [
        "cifar-fs",
        "folder",
        "glyphs",
        "miniimagenet",
        "omniglot",
        "sinusoids",
        "aardvark",
    ]
    assert [p.name for p in registry.plugins("head")] == [
        "cosine",
        "hidra",
        "hidra-prototypes",
        "maml",
        "protomaml",
        "random",
        "ridge",
        "zero",
    ]
    assert [p.name for p in registry.plugins("backbone")] == [
        "conv4",
        "mlp",
        "resnet12",
        "timm",
        "torchvision",
    ]


def test_listing_imports_nothing(install: Install, tmp_path: Path) -> None:
    mark = tmp_path / "imported"
    source = f"open({str(mark)!r}, 'w').close()\nraise RuntimeError('imported')"
    install("bomb-dist", {"bomb": "bomb_module:Bomb"}, bomb_module=source)
    assert "dataset 'bomb' of bomb-dist 1.2" in labels("dataset")
    assert find("dataset", "bomb").distribution == "bomb-dist"
    assert "bomb_module" not in sys.modules
    assert not mark.exists()


def test_a_good_plugin_is_loaded(install: Install) -> None:
    install("good-dist", {"good": "good_module:Good"}, good_module=GOOD)
    assert load(find("dataset", "good")).title == "good"


@pytest.mark.parametrize(
    ("source", "told"),
    [
        ("raise RuntimeError('no luck')", "RuntimeError: no luck"),
        ("import a_package_that_is_missing", "ModuleNotFoundError: No module named"),
        ("raise SystemExit(3)", "SystemExit: 3"),
        ("def broken(:", "SyntaxError"),
        ("", "AttributeError: module 'bad_module' has no attribute 'Bad'"),
    ],
)
def test_a_plugin_that_cannot_be_imported_is_named_and_others_load(
    install: Install, source: str, told: str
) -> None:
    install("bad-dist", {"bad": "bad_module:Bad"}, version="0.7", bad_module=source)
    install("good-dist", {"good": "good_module:Good"}, good_module=GOOD)
    error = failure("bad")
    assert error.what == "dataset 'bad' of bad-dist 0.7 could not be imported"
    assert told in error.why
    assert "bad_module:Bad" in error.why
    assert "pip uninstall bad-dist" in error.fix
    assert "HIDRA_PLUGINS=none" in error.fix
    assert load(find("dataset", "good")).title == "good"
    assert load(find("dataset", "glyphs")).embedded


def test_an_interrupt_during_an_import_is_no_fault_of_the_plugin(install: Install) -> None:
    install("slow-dist", {"slow": "slow_module:X"}, slow_module="raise KeyboardInterrupt")
    with pytest.raises(KeyboardInterrupt):
        load(find("dataset", "slow"))


@pytest.mark.parametrize("source", ["class Bad: api_version = 1", "Bad = 5", "def Bad(): pass"])
def test_what_is_no_subclass_of_the_contract_is_refused(install: Install, source: str) -> None:
    install("bad-dist", {"bad": "bad_module:Bad"}, bad_module=source)
    error = failure("bad")
    assert error.what == "dataset 'bad' of bad-dist 1.2 is not a Dataset or FunctionFamily"
    assert "bad_module:Bad" in error.why
    assert "write class Bad(Dataset)" in error.fix
    assert "bad-dist" in error.fix


def test_a_head_registered_as_a_dataset_is_refused(install: Install) -> None:
    install("mix-dist", {"mix": "hidra_plugins.heads:Zero"})
    assert failure("mix").what == "dataset 'mix' of mix-dist 1.2 is not a Dataset or FunctionFamily"


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("api_version = 2", "it declares api_version = 2, this hidra has 1"),
        ("pass", "Good declares no api_version"),
    ],
)
def test_another_api_version_is_refused(install: Install, line: str, why: str) -> None:
    source = GOOD.replace("api_version = 1", line)
    install("old-dist", {"old": "old_module:Good"}, version="9.1", old_module=source)
    error = failure("old")
    assert "dataset 'old' of old-dist 9.1" in error.what
    assert error.why.startswith(f"{why}\nin ")
    assert error.why.endswith(
        f"old_module.py:{1 + source[: source.index('class Good')].count(chr(10))}"
    )
    assert "old-dist" in error.fix
    assert ("write `api_version = 1` below `class Good`" in error.fix) == (line == "pass")


@pytest.mark.parametrize(
    ("origin", "fix"),
    [
        (
            '{"url": "file:///home/a%20b/x", "dir_info": {"editable": true}}',
            "mend it in /home/a b/x;",
        ),
        (
            '{"url": "file:///src/x", "dir_info": {}}',
            "mend it in /src/x, then `pip install /src/x`",
        ),
        ('{"url": "https://example.org/x.whl", "archive_info": {}}', "report it to the authors"),
        ("[", "report it to the authors"),
    ],
)
def test_the_advice_fits_how_a_plugin_was_installed(
    install: Install, tmp_path: Path, origin: str, fix: str
) -> None:
    install("bad-dist", {"bad": "bad_module:Bad"}, bad_module="import absent_module")
    (info,) = tmp_path.rglob("bad*.dist-info")
    (info / "direct_url.json").write_text(origin)
    error = failure("bad")
    assert fix in error.fix
    assert error.why.endswith("bad_module.py:1")


def test_one_name_of_two_distributions_must_be_told_apart(install: Install) -> None:
    install("one-dist", {"same": "one_module:Good"}, version="1", one_module=GOOD)
    other = GOOD.replace('"good"', '"other"')
    install("two-dist", {"same": "two_module:Good"}, version="2", two_module=other)
    with pytest.raises(PluginError, match="2 distributions offer a dataset") as caught:
        find("dataset", "same")
    assert caught.value.why == "one-dist 1 and two-dist 2"
    assert caught.value.fix == "write one-dist:same or two-dist:same"
    assert load(find("dataset", "one-dist:same")).title == "good"
    assert load(find("dataset", "two-dist:same")).title == "other"


def test_a_plugin_cannot_take_the_name_of_a_built_in_silently(install: Install) -> None:
    install("evil-dist", {"glyphs": "good_module:Good"}, good_module=GOOD)
    with pytest.raises(PluginError) as caught:
        find("dataset", "glyphs")
    assert "hidra-cli" in caught.value.why
    assert "evil-dist" in caught.value.why
    assert find("dataset", "hidra-cli:glyphs").distribution == "hidra-cli"


def test_other_plugins_can_be_left_out(install: Install, monkeypatch: pytest.MonkeyPatch) -> None:
    install("good-dist", {"good": "good_module:Good"}, good_module=GOOD)
    monkeypatch.setenv("HIDRA_PLUGINS", "none")
    registry.plugins.cache_clear()
    assert {p.distribution for p in registry.plugins("dataset")} == {"hidra-cli"}
    with pytest.raises(UsageError, match="there is no dataset called 'good'"):
        find("dataset", "good")


@pytest.mark.usefixtures("install")
@pytest.mark.parametrize(
    ("name", "hint"),
    [("omniglt", "did you mean 'omniglot'?"), ("zzz", ""), ("nobody:glyphs", "glyphs")],
)
def test_an_unknown_name_is_refused_with_the_nearest(name: str, hint: str) -> None:
    with pytest.raises(UsageError, match=f"there is no dataset called '{name}'") as caught:
        find("dataset", name)
    assert hint in caught.value.why
    assert "glyphs, miniimagenet, omniglot" in caught.value.fix
    assert caught.value.code == 2


@pytest.mark.usefixtures("install")
def test_a_distribution_without_metadata_does_not_break_the_others(tmp_path: Path) -> None:
    info = tmp_path / "bare-1.dist-info"
    info.mkdir()
    (info / "entry_points.txt").write_text("[hidra.datasets]\nbare = bare_module:X\n")
    registry.plugins.cache_clear()
    assert find("dataset", "glyphs").distribution == "hidra-cli"
    assert find("dataset", "bare").name == "bare"


@pytest.mark.usefixtures("install")
def test_every_built_in_keeps_its_promise() -> None:
    for kind in registry.KINDS:
        for plugin in registry.plugins(kind):
            assert load(plugin).api_version == 1
            assert all(option.help for option in options(load(plugin))), plugin.label


class Opted:
    def __init__(
        self,
        source: Path | None,
        extra: int = 0,
        *,
        size: Annotated[int, "side in pixels"],
        kind: Annotated[Literal["a", "b"], "which one"] = "a",
        rate: Annotated[float, 7, "how fast"] = 0.5,
        plain: bool = False,
        perhaps: int | None = None,
        untyped: Any = "x",
    ) -> None:
        pass


def test_options_are_the_keyword_only_arguments() -> None:
    found = {option.name: option for option in options(Opted)}
    assert list(found) == ["size", "kind", "rate", "plain", "perhaps", "untyped"]
    assert [o.required for o in found.values()] == [True, False, False, False, False, False]
    assert [o.default for o in found.values()] == [None, "a", 0.5, False, None, "x"]
    helps = [o.help for o in found.values()]
    assert helps == ["side in pixels", "which one", "how fast", "", "", ""]
    names = [o.type_name for o in found.values()]
    assert names == ["int", "a | b", "float", "bool", "int | None", "Any"]


def test_options_of_a_built_in_head_are_read() -> None:
    master, start, prior, *_ = options(load(find("head", "hidra")))
    assert (start.name, start.default, start.type_name) == ("start", "xavier", "xavier | zero")
    assert (prior.name, prior.default, prior.type_name) == ("prior", False, "bool")
    assert (master.name, master.default, master.type_name) == ("master", "tied", "tied | slots")
    assert "gradient through all its copies" in master.help


def test_a_plugin_without_a_constructor_has_no_options(install: Install) -> None:
    install("good-dist", {"good": "good_module:Good"}, good_module=GOOD)
    assert options(load(find("dataset", "good"))) == []


def test_types_imported_for_the_type_checker_only_do_not_hide_the_options(
    install: Install,
) -> None:
    source = """
        from __future__ import annotations
        from typing import TYPE_CHECKING, Annotated
        from hidra_cli.api import Dataset
        if TYPE_CHECKING:
            from pathlib import Path
        class Late(Dataset):
            api_version = 1
            title = "late"
            def __init__(self, source: Path | None, *, size: Annotated[int, "side"] = 3) -> None:
                self.image_shape = (1, size, size)
            def classes(self, downloads: Path):
                return []
        """
    install("late-dist", {"late": "late_module:Late"}, late_module=source)
    (option,) = options(load(find("dataset", "late")))
    assert (option.name, option.annotation, option.help) == ("size", int, "side")


def test_the_nearest_name_is_only_given_when_it_is_near() -> None:
    assert nearest("glyph", ["glyphs", "folder"]) == "did you mean 'glyphs'?"
    assert nearest("q", ["glyphs", "folder"]) == ""
    assert nearest("x", []) == ""


def test_a_plugin_names_its_kind_distribution_and_version() -> None:
    plugin: Plugin = find("head", "maml")
    assert plugin.label == f"head 'maml' of hidra-cli {plugin.version}"
