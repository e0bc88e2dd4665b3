"""Settings: number lists, layers and their origins, errors all at once, plugin options."""

import sys
import tomllib
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

import hidra_data
from hidra_cli.api.options import Option, plugin_options
from hidra_cli.errors import PluginError, UsageError
from hidra_cli.settings.layers import flatten, parse_assignments, resolve
from hidra_cli.settings.numbers import format_numbers, parse_numbers
from hidra_cli.settings.presets import preset_names
from hidra_cli.settings.schema import (
    DatasetSettings,
    InnerSettings,
    ModelSettings,
    OuterSettings,
    RunSettings,
    Settings,
    TaskSettings,
)

numbers = st.sets(st.integers(1, 100_000) | st.integers(1, 30), min_size=1, max_size=40)


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def why(flags: dict[str, Any], **layers: Any) -> list[str]:
    """The problems that `resolve` finds, one per line."""
    layers.setdefault("environ", {})
    with pytest.raises(UsageError) as caught:
        resolve(flags, **layers)
    return [line.strip() for line in caught.value.why.split("\n")]


@pytest.fixture
def preset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a preset in a data package of its own, found before the installed one."""
    folder = tmp_path / "path" / "hidra_data"
    (folder / "presets").mkdir(parents=True)
    (folder / "__init__.py").touch()
    text = "[tasks]\nways = 3\nshots = 3\nqueries = 3\n[inner]\nsteps = 3\n"
    write(folder / "presets" / "three.toml", text)
    write(folder / "presets" / "broken.toml", "[tasks\n")
    monkeypatch.delitem(sys.modules, hidra_data.__name__)
    monkeypatch.syspath_prepend(folder.parent)
    return "three"


@given(numbers)
def test_formatted_numbers_are_read_back(chosen: set[int]) -> None:
    text = format_numbers(chosen)
    assert parse_numbers(text) == tuple(sorted(chosen))
    assert parse_numbers(text.replace("-", "..")) == tuple(sorted(chosen))


@given(numbers)
def test_lists_and_spaced_text_mean_the_same_numbers(chosen: set[int]) -> None:
    expected = tuple(sorted(chosen))
    assert parse_numbers(list(chosen)) == expected
    assert parse_numbers(" , ".join(map(str, chosen))) == expected
    assert parse_numbers([*chosen, *chosen]) == expected


@given(st.integers(1, 99_000), st.integers(2, 1000))
def test_a_range_is_written_as_a_range(first: int, length: int) -> None:
    last = first + length - 1
    assert format_numbers(range(first, last + 1)) == f"{first}-{last}"
    assert parse_numbers(f"{first}-{last}") == tuple(range(first, last + 1))


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("0", "0 is not positive"),
        (0, "0 is not positive"),
        (-3, "-3 is not positive"),
        ("-3", "-3 is not positive"),
        ("0-4", "0 is not positive"),
        ("5-2", "the range 5-2 is empty"),
        ("100001", "100001 is more than 100000"),
        ("1-100001", "100001 is more than 100000"),
        ("five", "'five' is not a number or a range"),
        ("2-3-4", "'2-3-4' is not a number or a range"),
        ("2-", "'2-' is not a number or a range"),
        ("", "'' is not a number or a range"),
        ("2,,3", "'' is not a number or a range"),
        ([], "'' is not a number or a range"),
        (2.5, "'2.5' is not a number or a range"),
        ("1e2", "'1e2' is not a number or a range"),
        ("٥", "is not a number or a range"),
        (True, "write a number, a list or a range"),
        ([True], "'True' is not a number or a range"),
        ([2, None], "'None' is not a number or a range"),
    ],
)
def test_what_is_no_number_list_is_refused(value: Any, message: str) -> None:
    with pytest.raises(ValueError, match=r"write|positive|empty|more") as caught:
        parse_numbers(value)
    assert message in str(caught.value)


@given(st.text(max_size=12) | st.integers() | st.floats() | st.lists(st.integers(), max_size=4))
def test_any_value_is_read_or_refused_with_a_value_error(value: Any) -> None:
    try:
        found = parse_numbers(value)
    except ValueError as exc:
        assert str(exc)  # noqa: PT017, a refusal is one of two right answers
    else:
        assert found == tuple(sorted(set(found)))
        assert found[0] >= 1


def test_numbers_with_only_a_space_between_are_not_glued_together() -> None:
    with pytest.raises(ValueError, match="is not a number or a range"):
        parse_numbers("5 10")


def test_a_number_of_many_digits_is_called_too_large() -> None:
    with pytest.raises(ValueError, match="is more than 100000"):
        parse_numbers("12345678901")


def test_each_layer_wins_over_those_below(tmp_path: Path, preset: str) -> None:
    config = write(tmp_path / "own.toml", "[tasks]\nways = 4\nshots = 4\nqueries = 4\n")
    environ = {"HIDRA_TASKS_WAYS": "5", "HIDRA_TASKS_SHOTS": "5", "PATH": "/bin"}
    found = resolve({"tasks.ways": "6"}, config=config, preset=preset, environ=environ)
    tasks = found.settings.tasks
    assert (tasks.ways, tasks.shots, tasks.queries) == ((6,), (5,), 4)
    assert (found.settings.inner.steps, found.settings.run.seed) == (3, 0)
    origins = {key: (value, origin) for key, value, origin in found.rows()}
    assert origins["tasks.ways"] == ("6", "flag")
    assert origins["tasks.shots"] == ("5", "environment")
    assert origins["tasks.queries"] == ("4", str(config))
    assert origins["inner.steps"] == ("3", "preset three")
    assert origins["run.seed"] == ("0", "default")


def test_rows_show_every_setting_once_in_the_order_of_the_models() -> None:
    keys = [key for key, _, _ in resolve({}, environ={}).rows()]
    assert keys[:2] == ["dataset.name", "dataset.source"]
    assert keys[-1] == "run.save_seconds"
    assert len(keys) == len(set(keys)) == 41


def test_a_lower_layer_s_bad_value_does_not_matter_when_overridden(tmp_path: Path) -> None:
    config = write(tmp_path / "own.toml", "[run]\nseed = -1\n")
    found = resolve({}, config=config, environ={"HIDRA_RUN_SEED": "7"})
    assert found.settings.run.seed == 7


def test_options_of_one_plugin_are_joined_over_the_layers() -> None:
    environ = {"HIDRA_MODEL_BACKBONE_OPTIONS": "filters=32,blocks=3"}
    flags = {"model.backbone_options": {"blocks": "2"}}
    found = resolve(flags, preset="maml-omniglot", environ=environ)
    expected = {"filters": "32", "downsample": "stride", "blocks": "2"}
    assert found.settings.model.backbone_options == expected
    origin = found.origins["model.backbone_options"]
    assert origin == "preset maml-omniglot, environment, flag"


@pytest.mark.parametrize(
    ("key", "options"),
    [
        ("dataset.name", "dataset.options"),
        ("model.backbone", "model.backbone_options"),
        ("model.head", "model.head_options"),
    ],
)
@pytest.mark.parametrize("own", [{}, {"x": "1"}])
def test_another_plugin_does_not_get_the_options_of_the_one_before(
    key: str, options: str, own: dict[str, str]
) -> None:
    before = resolve({}, preset="hidra-omniglot", environ={})
    assert flatten(before.settings.model_dump())[options]
    flags = {key: "other"} | ({options: own} if own else {})
    found = resolve(flags, preset="hidra-omniglot", environ={})
    assert flatten(found.settings.model_dump())[options] == own
    assert found.origins.get(options) == ("flag" if own else None)
    named = {key: flatten(before.settings.model_dump())[key]}
    assert resolve(named, preset="hidra-omniglot", environ={}).settings == before.settings


def test_the_default_plugin_s_options_are_not_given_to_another(tmp_path: Path) -> None:
    config = write(tmp_path / "own.toml", "[model.head_options]\nmaster = 'slots'\n")
    assert resolve({}, config=config, environ={}).settings.model.head_options
    found = resolve({"model.head": "zero"}, config=config, environ={})
    assert not found.settings.model.head_options


def test_the_process_s_own_environment_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HIDRA_INNER_INNER_LR", "0.125")
    found = resolve({})
    assert found.settings.inner.inner_lr == 0.125
    assert found.origins["inner.inner_lr"] == "environment"


@pytest.mark.parametrize(
    "name",
    ["HIDRA_HOME", "HIDRA_CACHE_DIR", "HIDRA_RUNS_DIR", "HIDRA_PLUGINS", "HIDRA_DEBUG"],
)
def test_variables_that_are_no_settings_are_left_alone(name: str) -> None:
    assert resolve({}, environ={name: "x"}).settings == Settings()


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("[tasks]\nway = 3", "tasks.way ({}): unknown key. did you mean 'tasks.ways'?"),
        ("[taks]\nways = 3", "taks.ways ({}): unknown key. did you mean 'tasks.ways'?"),
        ("ways = 3", "ways ({}): unknown key. did you mean 'tasks.ways'?"),
        ("[run]\nzzzzzzzz = 3", "run.zzzzzzzz ({}): unknown key."),
    ],
)
def test_an_unknown_key_of_a_file_is_named_with_the_nearest(
    tmp_path: Path, text: str, line: str
) -> None:
    config = write(tmp_path / "own.toml", text)
    assert why({}, config=config) == [line.format(config)]


def test_an_unknown_section_is_refused_even_when_empty(tmp_path: Path) -> None:
    config = write(tmp_path / "own.toml", "[taskz]\n")
    (line,) = why({}, config=config)
    assert "taskz" in line
    assert "unknown" in line


def test_a_mistyped_variable_is_named_with_the_nearest() -> None:
    (line,) = why({}, environ={"HIDRA_TASKS_WAY": "5"})
    assert line.startswith("HIDRA_TASKS_WAY (environment): unknown key.")
    assert "HIDRA_TASKS_WAYS" in line


def test_all_errors_of_all_layers_are_told_at_once(tmp_path: Path, preset: str) -> None:
    config = write(tmp_path / "own.toml", "[outer]\nitertions = 5\nmeta_batch = 0\n")
    environ = {"HIDRA_INNER_STEPS": "-1", "HIDRA_NONSENSE": "1"}
    flags = {"tasks.ways": "5-2", "run.seed": "x", "model.normalization": "batch"}
    lines = why(flags, config=config, preset=preset, environ=environ)
    assert len(lines) == 7
    text = "\n".join(lines)
    assert f"outer.itertions ({config}): unknown key. did you mean 'outer.iterations'?" in text
    assert "HIDRA_NONSENSE (environment): unknown key." in text
    assert "tasks.ways = 5-2 (flag): the range 5-2 is empty" in text
    assert "run.seed = x (flag): Input should be a valid integer" in text
    assert "model.normalization = batch (flag): Input should be 'support'" in text
    assert f"outer.meta_batch = 0 ({config}): Input should be greater than or equal to 1" in text
    assert "inner.steps = -1 (environment): Input should be greater than or equal to 0" in text


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("inner.inner_lr", "nan"),
        ("inner.inner_lr", "inf"),
        ("inner.inner_lr", 0),
        ("outer.clip", -1),
        ("inner.order", 3),
        ("run.seed", 2**63),
        ("outer.iterations", 2.5),
        ("dataset.name", 5),
    ],
)
def test_a_value_out_of_range_is_refused(key: str, value: Any) -> None:
    (line,) = why({key: value})
    assert line.startswith(f"{key} = {value} (flag): Input should be")


def test_a_truth_value_is_no_number() -> None:
    (line,) = why({"outer.iterations": True})
    assert line.startswith("outer.iterations = True (flag)")


@pytest.mark.parametrize("order", [1, 2])
def test_the_order_may_come_as_text_as_flags_and_variables_do(order: int) -> None:
    assert resolve({"inner.order": str(order)}, environ={}).settings.inner.order == order
    found = resolve({}, environ={"HIDRA_INNER_ORDER": str(order)})
    assert found.settings.inner.order == order


@given(
    steps=st.integers(0, 1000),
    test_steps=st.integers(0, 10_000),
    clip=st.floats(0, 1e9),
    seed=st.integers(0, 2**63 - 1),
)
def test_text_and_typed_values_mean_the_same(
    steps: int, test_steps: int, clip: float, seed: int
) -> None:
    typed = {
        "inner.steps": steps,
        "inner.test_steps": test_steps,
        "outer.clip": clip,
        "run.seed": seed,
    }
    text = {key: str(value) for key, value in typed.items()}
    assert resolve(text, environ={}).settings == resolve(typed, environ={}).settings


def test_steps_at_test_follow_the_steps_unless_given() -> None:
    assert InnerSettings(steps=3).steps_at_test == 3
    assert InnerSettings(steps=3, test_steps=0).steps_at_test == 0


@pytest.mark.parametrize("text", ["[tasks", "ways = ", "[tasks]\nways = 1\nways = 2"])
def test_a_file_that_is_no_toml_is_named(tmp_path: Path, text: str) -> None:
    config = write(tmp_path / "own.toml", text)
    with pytest.raises(UsageError, match=r"own\.toml is not valid TOML") as caught:
        resolve({}, config=config, environ={})
    assert caught.value.why


@pytest.mark.parametrize(
    "text", ["[tasks]\nqueries = " + "1" * 5000, "a = " + "[" * 5000], ids=["digits", "depth"]
)
def test_absurd_toml_is_refused_like_any_other(tmp_path: Path, text: str) -> None:
    config = write(tmp_path / "own.toml", text)
    with pytest.raises(UsageError, match=r"own\.toml is not valid TOML"):
        resolve({}, config=config, environ={})


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "latin.toml").write_bytes(b"[dataset]\nname = '\xe9'\n")
    for path in (tmp_path / "none.toml", tmp_path, tmp_path / "latin.toml"):
        with pytest.raises(UsageError, match="cannot be read") as caught:
            resolve({}, config=path, environ={})
        assert str(path) in caught.value.what
        assert caught.value.why
        assert "--config" in caught.value.fix


@pytest.mark.usefixtures("preset")
def test_an_unknown_preset_is_refused_with_the_nearest() -> None:
    assert preset_names() == ["broken", "three"]
    with pytest.raises(UsageError, match="there is no preset called 'tree'") as caught:
        resolve({}, preset="tree", environ={})
    assert caught.value.why == "did you mean 'three'?"
    assert caught.value.fix == "choose one of broken, three"


@pytest.mark.usefixtures("preset")
def test_a_broken_preset_is_named() -> None:
    with pytest.raises(UsageError, match="broken is not valid TOML"):
        resolve({}, preset="broken", environ={})


def test_every_preset_that_ships_is_valid() -> None:
    folder = Path(hidra_data.__file__).parent / "presets"
    assert preset_names() == sorted(path.stem for path in folder.glob("*.toml"))
    for name in preset_names():
        found = resolve({}, preset=name, environ={})
        assert f"preset {name}" in found.origins.values()


options = st.dictionaries(
    st.from_regex(r"[a-z_]{1,8}", fullmatch=True),
    st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
    | st.integers(-(2**63), 2**63 - 1)
    | st.booleans()
    | st.floats(allow_nan=False),
    max_size=3,
)
every_settings = st.builds(
    Settings,
    dataset=st.builds(DatasetSettings, name=st.text("abc-:", min_size=1), options=options),
    tasks=st.builds(
        TaskSettings, ways=numbers.map(list), shots=numbers.map(list), queries=st.integers(1, 9)
    ),
    model=st.builds(ModelSettings, head_options=options, backbone_options=options),
    inner=st.builds(
        InnerSettings,
        test_steps=st.none() | st.integers(0, 9),
        inner_lr=st.floats(1e-300, 1e300),
        order=st.sampled_from([1, 2]),
    ),
    outer=st.builds(OuterSettings, clip=st.floats(0, 1e300)),
    run=st.builds(RunSettings, seed=st.integers(0, 2**63 - 1)),
)


@given(every_settings)
def test_settings_written_as_toml_are_read_back(settings: Settings) -> None:
    assert Settings.model_validate(tomllib.loads(settings.to_toml())) == settings


KNOWN = [
    Option("count", int, 1, False, ""),
    Option("scale", float, 1.0, False, ""),
    Option("bias", bool, True, False, ""),
    Option("kind", Literal["tied", "slots"], "tied", False, ""),
    Option("label", str, "", False, ""),
]


def test_options_are_converted_to_their_declared_types() -> None:
    given_text = {"count": "3", "scale": "1e-3", "bias": "false", "kind": "slots", "label": "7"}
    found = plugin_options("head 'x'", KNOWN, given_text)
    assert found == {"count": 3, "scale": 1e-3, "bias": False, "kind": "slots", "label": "7"}
    assert [type(value) for value in found.values()] == [int, float, bool, str, str]


def test_options_not_given_are_left_to_the_plugin() -> None:
    assert plugin_options("head 'x'", KNOWN, {}) == {}


@given(
    st.integers(-(10**12), 10**12), st.floats(allow_nan=False, allow_infinity=False), st.booleans()
)
def test_typed_options_of_a_file_stay_as_they_are(count: int, scale: float, bias: bool) -> None:
    values = {"count": count, "scale": scale, "bias": bias}
    assert plugin_options("head 'x'", KNOWN, values) == values


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("count", "2.5", "count=2.5: Input should be a valid integer"),
        ("count", "many", "count=many: Input should be a valid integer"),
        ("scale", "big", "scale=big: Input should be a valid number"),
        ("bias", "maybe", "bias=maybe: Input should be a valid boolean"),
        ("kind", "slot", "kind=slot: Input should be 'tied' or 'slots'"),
        ("cuont", "3", "cuont: unknown option. did you mean 'count'?"),
    ],
)
def test_a_wrong_option_is_named(name: str, value: str, message: str) -> None:
    with pytest.raises(UsageError, match="the options of head 'x' are wrong") as caught:
        plugin_options("head 'x'", KNOWN, {name: value})
    assert message in caught.value.why
    assert caught.value.fix == "its options are: count, scale, bias, kind, label"


def test_all_wrong_options_are_told_at_once() -> None:
    known = [*KNOWN, Option("path", str, None, True, "")]
    with pytest.raises(UsageError) as caught:
        plugin_options("head 'x'", known, {"count": "x", "nonsense": "1"})
    assert [line.split(":")[0].strip() for line in caught.value.why.split("\n")] == [
        "count=x",
        "nonsense",
        "path",
    ]


def test_a_literal_of_numbers_may_be_given_as_text() -> None:
    known = [Option("order", Literal[1, 2], 2, False, "")]
    assert plugin_options("head 'x'", known, {"order": "1"}) == {"order": 1}


def test_options_of_a_plugin_without_any_are_refused() -> None:
    with pytest.raises(UsageError) as caught:
        plugin_options("head 'x'", [], {"a": "1"})
    assert caught.value.fix == "its options are: none"


def test_assignments_are_split_at_the_first_equals_sign() -> None:
    assert parse_assignments(["a=1", " b = x=y ", "c="], "--head-opt") == {
        "a": "1",
        "b": "x=y",
        "c": "",
    }


@pytest.mark.parametrize("pair", ["a", "=1", " =1", ""])
def test_an_assignment_without_name_or_sign_is_refused(pair: str) -> None:
    with pytest.raises(UsageError, match="--head-opt") as caught:
        parse_assignments([pair], "--head-opt")
    assert caught.value.fix == "write --head-opt name=value"


def test_option_tables_may_come_from_variables() -> None:
    found = resolve({}, environ={"HIDRA_MODEL_HEAD_OPTIONS": "master=slots, x=1"}).settings
    assert found.model.head_options == {"master": "slots", "x": "1"}


def test_an_option_of_a_type_that_no_text_spells_is_the_plugin_s_fault() -> None:
    class Odd: ...

    with pytest.raises(PluginError, match="cannot be given as text: odd"):
        plugin_options("head 'x'", [Option("odd", Odd, None, False, "")], {"odd": "1"})
    with pytest.raises(UsageError, match="are wrong"):
        plugin_options("head 'x'", [Option("rate", float, 1.0, False, "")], {"rate": "nan"})


def test_a_run_of_an_older_version_names_its_strategy_otherwise() -> None:
    assert RunSettings(strategy="compiled").strategy == "captured"  # type: ignore[arg-type]
