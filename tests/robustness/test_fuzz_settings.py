"""Any flags, variables and files: settings, or a clear refusal; never another exception."""

from __future__ import annotations

import itertools
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
import tomli_w
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hidra_cli.errors import UsageError
from hidra_cli.settings.layers import resolve
from hidra_cli.settings.numbers import MOST_WAYS_OR_SHOTS, format_numbers, parse_numbers
from hidra_cli.settings.presets import preset_names
from hidra_cli.settings.schema import Settings

from ..conftest import TINY_DATA, Finished, Hidra, WriteImage

# What random text would seldom be.
ODD = [
    *("", " ", "0", "-1", "1", "2", "3", " 2 ", "2-3", "2,3", "5-2", "1-100000", "1..3", "-", ","),
    *("1.0", "2.5", "1e3", "1e400", "-0.0", "nan", "inf", "-inf", "0x10", "1_0", "٥", "５", "²"),
    *("9" * 19, "9" * 40, "9" * 5000, "true", "none", "null", "auto", "cpu", "fixed", "hidra"),
    *("a=b", "=", "a=", "size=8", "filters=2", "\n", "\t2", "\x1b[31m", "\r", "\x7f", "\u202e"),
    *("[bold]", "[/]", ":", "::", ":smile:", "%s", "{}", "$HOME", "~nobody-of-this-name/x"),
    *("a" * 300, "a" * 5000, "\udce9", "é", "\U0001f600", "head_options", "--help", "-h", "--"),
]
DEVICES = ["cpu", "cpu:1", "meta", "mps", "hpu", "privateuseone", "mkldnn", "cuda:-1", "cuda:999"]
# Values as a TOML file spells them, up to the limits of what tomllib and Python itself take.
RAW = [
    *("1", "-1", "0x" + "f" * 16, "0x" + "f" * 5000, "[0x" + "f" * 5000 + "]", "1_000", "0b11"),
    *("1e5", "1e400", "-inf", "nan", "true", '""', '"2-5"', '"\\u0000"', "'''a\nb'''", "[]"),
    *("1979-05-27", "07:32:00", "1979-05-27T07:32:00.999999-07:00", "[[[1]]]", "[1, [2, {a = 3}]]"),
    *("{}", "{a = 1}", "{a = {b = 0x" + "f" * 5000 + "}}", '{"" = 1, "a.b" = nan}'),
]
KEYS = [key for key, _, _ in resolve({}, environ={}).rows()]
VARIABLES = [f"HIDRA_{key.replace('.', '_').upper()}" for key in KEYS]
PRESETS = [
    (resources.files("hidra_data") / "presets" / f"{name}.toml").read_text("utf-8")
    for name in preset_names()
]

few_or_many = pytest.mark.parametrize("examples", [150, pytest.param(4000, marks=pytest.mark.slow)])
commands = pytest.mark.parametrize("examples", [60, pytest.param(1000, marks=pytest.mark.slow)])

# Neither a command line nor a variable can hold a NUL; bytes that are no UTF-8 come as surrogates.
any_text = st.sampled_from(ODD) | st.text(st.characters(exclude_characters="\0"), max_size=24)
# A file is UTF-8.
file_text = any_text.filter(lambda text: not re.search("[\ud800-\udfff]", text)) | st.just("\0")
file_values = st.recursive(
    file_text
    | st.integers(-(2**70), 2**70)
    | st.floats()
    | st.booleans()
    | st.datetimes()
    | st.dates()
    | st.times(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(file_text, inner, max_size=3),
    max_leaves=6,
)


def for_any(examples: int, *strategies: st.SearchStrategy[Any]) -> Callable[[Any], None]:
    """Run the decorated function with that many examples."""

    def run(check: Callable[..., None]) -> None:
        rules = settings(
            max_examples=examples, deadline=None, suppress_health_check=[HealthCheck.too_slow]
        )
        rules(given(*strategies)(check))()

    return run


def tables(values: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    """Settings by section, the keys for the most part known."""
    keys = st.sampled_from([key.partition(".")[2] for key in KEYS]) | file_text
    sections = st.sampled_from(sorted({key.partition(".")[0] for key in KEYS})) | file_text
    return st.dictionaries(sections, st.dictionaries(keys, values, max_size=4) | values, max_size=3)


@st.composite
def raw_settings(draw: st.DrawFn) -> str:
    """One known key with a value spelled as no library would write it."""
    section, _, key = draw(st.sampled_from(KEYS)).partition(".")
    return f"[{section}]\n{key} = {draw(st.sampled_from(RAW))}\n"


@st.composite
def mutated_files(draw: st.DrawFn) -> str:
    """A good file of which some pieces were removed, doubled or overwritten."""
    text: str = draw(st.sampled_from([*PRESETS, Settings().to_toml()]))
    for _ in range(draw(st.integers(1, 3))):
        start = draw(st.integers(0, len(text)))
        end = min(len(text), start + draw(st.integers(0, 12)))
        text = text[:start] + draw(st.just(text[start:end] * 2) | file_text) + text[end:]
    return text


documents = st.one_of(
    file_text, tables(file_values).map(tomli_w.dumps), raw_settings(), mutated_files()
)


def spelled(chosen: Settings) -> str:
    """The values of settings, in a form in which NaN equals NaN."""
    return json.dumps(chosen.model_dump(), sort_keys=True, default=repr)


def check_layers(
    path: Path, flags: dict[str, Any], environ: dict[str, str], document: str | None
) -> None:
    """These layers are refused, or give settings that a file keeps and a table shows."""
    if document is not None:
        path.write_text(document, encoding="utf-8", newline="")
    try:
        found = resolve(flags, environ=environ, config=None if document is None else path)
    except UsageError as exc:
        assert str(exc).startswith("error: ")  # noqa: PT017, a refusal is one of two right ends
        return
    assert len(found.rows()) == len(KEYS)
    path.write_text(found.settings.to_toml(), encoding="utf-8", newline="")
    again = resolve({}, environ={}, config=path).settings
    assert spelled(again) == spelled(found.settings)


@few_or_many
def test_any_text_is_a_list_of_numbers_or_a_value_error(examples: int) -> None:
    parts = st.one_of(any_text, st.from_regex(r"[0-9]{1,7}(-|\.\.)?[0-9]{0,7}", fullmatch=True))

    @for_any(examples, st.lists(parts, max_size=5).map(",".join))
    def _(text: str) -> None:
        try:
            found = parse_numbers(text)
        except ValueError:
            return
        assert found == tuple(sorted(set(found)))
        assert 1 <= found[0] <= found[-1] <= MOST_WAYS_OR_SHOTS
        assert parse_numbers(format_numbers(found)) == found


def test_a_list_of_many_wide_ranges_takes_no_longer_than_reading_it() -> None:
    text = ",".join(f"{start}-100000" for start in range(1, 3001))
    begun = time.process_time()
    assert len(parse_numbers(text)) == 100_000
    assert time.process_time() - begun < 1


@few_or_many
def test_any_flags_give_settings_or_a_refusal(tmp_path: Path, examples: int) -> None:
    flags = st.dictionaries(st.sampled_from(KEYS) | any_text, any_text, max_size=5)

    @for_any(examples, flags)
    def _(given_flags: dict[str, str]) -> None:
        check_layers(tmp_path / "c.toml", given_flags, {}, None)


@few_or_many
def test_any_variables_give_settings_or_a_refusal(tmp_path: Path, examples: int) -> None:
    names = st.sampled_from(VARIABLES) | any_text.map("HIDRA_{}".format)

    @for_any(examples, st.dictionaries(names, any_text, max_size=5))
    def _(environ: dict[str, str]) -> None:
        check_layers(tmp_path / "c.toml", {}, environ, None)


@few_or_many
def test_any_file_gives_settings_or_a_refusal(tmp_path: Path, examples: int) -> None:
    @for_any(2 * examples, documents)
    def _(document: str) -> None:
        check_layers(tmp_path / "c.toml", {}, {}, document)


@pytest.mark.parametrize("key", ["tasks.ways", "tasks.queries", "inner.inner_lr", "run.seed"])
@pytest.mark.parametrize("digits", [10, 5000])
def test_a_number_in_hexadecimal_is_refused_however_long(
    tmp_path: Path, key: str, digits: int
) -> None:
    section, _, name = key.partition(".")
    document = f"[{section}]\n{name} = 0x{'f' * digits}\n"
    check_layers(tmp_path / "c.toml", {}, {}, document)


def test_a_number_beyond_all_measure_in_an_option_can_be_shown_or_is_refused(
    tmp_path: Path,
) -> None:
    document = f"[model.head_options]\nmaster = 0x{'f' * 5000}\n"
    check_layers(tmp_path / "c.toml", {}, {}, document)


def test_text_that_no_file_can_keep_is_refused(tmp_path: Path) -> None:
    """A run that records its settings would fail on the bytes of such a name."""
    check_layers(tmp_path / "c.toml", {"dataset.source": "caf\udce9"}, {}, None)


@few_or_many
def test_all_layers_together_give_settings_or_a_refusal(tmp_path: Path, examples: int) -> None:
    known = st.sampled_from(KEYS)
    flags = st.dictionaries(known, any_text, max_size=2)
    variables = st.dictionaries(st.sampled_from(VARIABLES), any_text, max_size=2)

    @for_any(examples, flags, variables, documents)
    def _(given_flags: dict[str, str], environ: dict[str, str], document: str) -> None:
        check_layers(tmp_path / "c.toml", given_flags, environ, document)


def assert_clear(done: Finished) -> None:
    """It worked, or says in the documented way what was wrong."""
    assert done.code in {0, 2, 3, 4, 5}, (done.code, done.err)
    assert "Traceback" not in done.err
    if done.code:
        assert re.search(r"^(error: |\s*Usage: )", done.err, re.MULTILINE), done.err
        assert "a fault of hidra" not in done.err
        assert done.out == ""


def is_small(text: str) -> bool:
    """Not a number that would be work."""
    try:
        return int(text) <= 3
    except ValueError:
        return True


small_text = any_text.filter(is_small)
# Not a folder that exists: it would be searched for images.
no_folder = any_text.filter(lambda text: "/" not in text.removeprefix("~") and text.strip(". ~"))


def flag(name: str, values: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    return values.map(f"--{name}={{}}".format)


def flags_of(*given_flags: st.SearchStrategy[str]) -> st.SearchStrategy[list[str]]:
    return st.lists(st.one_of(given_flags), min_size=1, max_size=3)


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory of its own, and no variable of hidra's."""
    for name in [name for name in os.environ if name.startswith("HIDRA_")]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@commands
def test_meta_train_shows_or_refuses_any_settings(
    hidra: Hidra, elsewhere: Path, examples: int
) -> None:
    names = [
        *("dataset", "source", "data-opt", "ways", "shots", "queries", "backbone", "bb-opt"),
        *("head", "head-opt", "normalization", "steps", "test-steps", "inner-lr", "head-lr"),
        *("adapt", "order", "iterations", "meta-batch", "outer-lr", "clip", "validate-every"),
        *("validation-episodes", "test-episodes", "seed", "device", "precision", "preset"),
    ]
    any_flag = st.one_of([flag(name, any_text) for name in names])
    more = st.sampled_from([["--json"], ["-q"], ["--config=c.toml"], ["--config=c.toml", "--json"]])

    @for_any(examples, st.lists(any_flag, max_size=4), more, documents)
    def _(given_flags: list[str], how: list[str], document: str) -> None:
        (elsewhere / "c.toml").write_text(document, encoding="utf-8", newline="")
        done = hidra("meta-train", "--print-config", *given_flags, *how)
        assert_clear(done)
        if done.code == 0 and "--json" in how:
            assert set(done.json) == set(KEYS)


@commands
def test_evaluate_does_or_refuses_anything(
    hidra: Hidra, elsewhere: Path, runs_dir: Path, cache_dir: Path, examples: int
) -> None:
    fast = ["--episodes=2", "--ways=2", "--queries=1", "--json", "--cache-dir", cache_dir]
    any_flags = flags_of(
        *[flag(name, any_text) for name in ("ways", "shots", "queries", "seed", "split")],
        *[flag(name, any_text) for name in ("normalization", "dataset", "source", "data-opt")],
        *[flag(name, small_text) for name in ("episodes", "steps")],
        flag("device", st.sampled_from(DEVICES) | any_text),
    )
    run = str(runs_dir / "hidra")

    @for_any(examples, any_flags, st.sampled_from([run] * 9) | no_folder)
    def _(given_flags: list[str], chosen: str) -> None:
        places = ["--out", elsewhere / "out"]
        assert_clear(hidra("evaluate", *fast, *given_flags, *places, "--", chosen))


@commands
def test_adapt_does_or_refuses_anything(
    hidra: Hidra, elsewhere: Path, runs_dir: Path, cache_dir: Path, examples: int
) -> None:
    fast = ["--ways=2", "--queries=1", "--json", "--cache-dir", cache_dir]
    any_flags = flags_of(
        *[flag(name, any_text) for name in ("ways", "shots", "queries", "seed", "episode")],
        *[flag(name, any_text) for name in ("dataset", "source", "data-opt")],
        flag("steps", small_text),
        flag("device", st.sampled_from(DEVICES) | any_text),
        flag("checkpoint", no_folder),
    )
    run = ["--checkpoint", runs_dir / "hidra", "--out", elsewhere / "out"]

    @for_any(examples, any_flags)
    def _(given_flags: list[str]) -> None:
        assert_clear(hidra("adapt", *fast, *run, *given_flags))


@commands
def test_plugins_show_finds_or_refuses_any_name(
    hidra: Hidra, elsewhere: Path, examples: int
) -> None:
    kinds = st.sampled_from(["head", "backbone", "dataset"])
    distributions = st.sampled_from(["", "hidra-cli:", ":"])

    @for_any(examples, kinds, distributions, any_text)
    def _(kind: str, distribution: str, name: str) -> None:
        assert_clear(hidra("plugins", "show", "--json", "--", kind, distribution + name))


@commands
def test_prepare_does_or_refuses_anything(
    hidra: Hidra, elsewhere: Path, write_image: WriteImage, examples: int
) -> None:
    for number in range(3):
        write_image(elsewhere / "own" / f"class{number}" / "1.png")
    options = st.sampled_from(["size", "colour", "split_seed", "fractions", "seed", "drawings"])
    any_option = st.builds("{}={}".format, options, small_text) | small_text
    any_flags = flags_of(
        flag("data-opt", any_option),
        flag("source", no_folder),
        flag("workers", st.sampled_from(["0", "-1", "1", "9" * 5000]) | small_text),
    )
    own = ["folder", "--source=own", "--data-opt=size=8"]
    datasets = st.sampled_from([own, ["glyphs", *TINY_DATA], ["omniglot", "--source=own"]])

    @for_any(
        examples, datasets | any_text.map(lambda text: ["--source=own", "--", text]), any_flags
    )
    def _(dataset: list[str], given_flags: list[str]) -> None:
        common = ["--json", "--workers=1", "--cache-dir=cache"]
        assert_clear(hidra("prepare", *common, *given_flags, *dataset))


@pytest.mark.parametrize("name", ["--source", "--cache-dir"])
@pytest.mark.parametrize("value", ["~nobody-of-this-name/x", "a" * 5000])
def test_a_path_that_cannot_be_is_refused(
    hidra: Hidra, elsewhere: Path, name: str, value: str
) -> None:
    done = hidra("prepare", "folder", f"{name}={value}")
    assert_clear(done)
    assert done.code in {2, 3}


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "utf-8"])
def test_an_output_that_lacks_some_characters_gets_others_instead(encoding: str) -> None:
    source = os.fsdecode(b"caf\xe9 \xe2\x86\x92")  # not UTF-8, and an arrow
    for more in ([], ["--json"]):
        command = [sys.executable, "-m", "hidra_cli.app", "meta-train", "--print-config", *more]
        environ = {n: v for n, v in os.environ.items() if not n.startswith("HIDRA_")}
        done = subprocess.run(
            [*command, f"--data-opt=a={source}"],
            capture_output=True,
            env=environ | {"PYTHONIOENCODING": encoding},
            check=False,
        )
        assert done.returncode in (0, 2), done.stderr.decode(errors="replace")
        assert b"a fault of hidra" not in done.stderr


@pytest.mark.parametrize("device", DEVICES)
def test_a_device_that_is_not_here_is_refused(
    hidra: Hidra, elsewhere: Path, runs_dir: Path, cache_dir: Path, device: str
) -> None:
    own = ["--checkpoint", runs_dir / "hidra", "--cache-dir", cache_dir, "--out", elsewhere]
    assert_clear(hidra("adapt", *own, "--ways=2", "--queries=1", "--json", f"--device={device}"))


@pytest.mark.parametrize("option", ["--episode", "--seed", "--queries", "--shots", "--ways"])
def test_a_number_of_many_digits_is_used_or_refused(
    hidra: Hidra, elsewhere: Path, runs_dir: Path, cache_dir: Path, option: str
) -> None:
    own = ["--checkpoint", runs_dir / "hidra", "--cache-dir", cache_dir, "--out", elsewhere]
    for digits in (19, 20, 40, 400):
        number = f"{option}={'9' * digits}"
        assert_clear(hidra("adapt", *own, "--ways=2", "--queries=1", "--json", number))


def test_every_odd_text_alone_as_every_setting(tmp_path: Path) -> None:
    for key, value in itertools.product(KEYS, ODD):
        check_layers(tmp_path / "c.toml", {key: value}, {}, None)
