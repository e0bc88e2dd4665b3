"""Pickles of CIFAR-100 read as data: what they may hold, and that nothing else is accepted."""

import pickle
import struct
import time
import tracemalloc
from typing import Any

import numpy as np
import pytest

from hidra_plugins.datasets import pickled
from hidra_plugins.datasets.pickled import Call, RefusedError, as_bytes_array, load

PIXELS = np.arange(12, dtype=np.uint8).reshape(2, 6)
EMPTY = b"\x80\x02}"


def python2(data: bytes, shape: tuple[int, int]) -> bytes:
    """What Python 2 and its numpy wrote, as in the official archive."""
    array = b"cnumpy.core.multiarray\n_reconstruct\nq\x03cnumpy\nndarray\nq\x04"
    array += b"K\x00\x85U\x01b\x87Rq\x05"
    array += b"(K\x01" + b"".join(b"J" + struct.pack("<i", side) for side in shape) + b"\x86"
    array += b"cnumpy\ndtype\nq\x06U\x02u1K\x00K\x01\x87Rq\x07(K\x03U\x01|NNNJ\xff\xff\xff\xff"
    array += b"J\xff\xff\xff\xffK\x00tb\x89T" + struct.pack("<i", len(data)) + data + b"tb"
    labels = b"U\x0bfine_labelsq\x08]q\x09(K\x01M\x2c\x01e"
    return b"\x80\x02}q\x01(U\x04dataq\x02" + array + labels + b"U\x05batchU\x04\xe9tat" + b"u."


def test_pickles_of_python_2_are_read() -> None:
    raw = bytes(range(250, 256)) * 2
    content = load(python2(raw, (2, 6)))
    assert as_bytes_array(content["data"]).tolist() == [list(range(250, 256))] * 2
    assert content["fine_labels"] == [1, 300]
    assert content["batch"] == "état"


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("writeable", [True, False])
def test_pickles_of_python_3_are_read(protocol: int, writeable: bool) -> None:
    pixels = PIXELS.copy()
    pixels.flags.writeable = writeable
    plain = {"labels": [1, 300, 70_000, -5, 1 << 40, 0.5], "none": (None, True, False, ())}
    plain |= {"text": "ü", "deep": {"list": [[], {}, (1,), (1, 2), (1, 2, 3), (1, 2, 3, 4)]}}  # type: ignore[dict-item]
    plain["shared"] = plain["labels"]
    found = load(pickle.dumps({"data": pixels, **plain}, protocol))
    np.testing.assert_array_equal(as_bytes_array(found.pop("data")), PIXELS)
    assert found == plain
    assert found["shared"] is found["labels"]


class Hostile:
    def __reduce__(self) -> Any:
        return eval, ("1 / 0",)


@pytest.mark.parametrize(
    ("value", "named"),
    [
        (Hostile(), "'builtins.eval'"),
        (np.float64(1), "scalar"),
        ({1, 2}, "opcode EMPTY_SET"),
        (Exception("x"), "'builtins.Exception'"),
        (10**700, "opcode LONG4"),
    ],
)
def test_anything_else_is_refused_and_named(value: Any, named: str) -> None:
    with pytest.raises(RefusedError, match=named):
        load(pickle.dumps({"data": value}, 4))


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"cos\x1b[2J\nsystem\n.", r"os.x1b"),
        (b"c" + b"x" * 5000 + b"\nsystem\n.", "it wants 'x{90,99}$"),
        (b"(I1\n.", "opcode INT"),
        (b"Pid\n.", "opcode PERSID"),
        (b"\x82\x01.", "opcode EXT1"),
        (b"(ios\nsystem\n.", "opcode INST"),
        (b")\x81.", "opcode NEWOBJ"),
        (b"]]\x93.", "it wants ''"),
    ],
)
def test_other_opcodes_and_names_are_refused(body: bytes, reason: str) -> None:
    with pytest.raises(RefusedError, match=reason) as caught:
        load(EMPTY + body)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"}.",
        b"0",
        b"u.",
        b"(K\x01u.",
        b"K\x01K\x02s.",
        b"\x85K\x01s.",
        b"K\x01R.",
        b"))R.",
        b"))b.",
        b"h\x07.",
        b"e.",
        b"t.",
        b"a.",
        b"\xff",
        b"T\xff\xff\xff\xff.",
        b"T\x00\x00\x00\x7fabc",
        b"\x8e" + b"\xff" * 8,
        b"X\x01\x00\x00\x00\xff.",
    ],
)
def test_damaged_pickles_raise_and_nothing_else(body: bytes) -> None:
    with pytest.raises((ValueError, LookupError)):
        load(EMPTY + body)


def array(raw: Any, shape: Any, dtype: str = "u1", fortran: Any = False) -> Call:
    state = (1, shape, Call("dtype", (dtype, False, True)), fortran, raw)
    return Call("_reconstruct", (), state)


@pytest.mark.parametrize(
    "value",
    [
        None,
        [1, 2],
        array(b"123456", (2, 2)),
        array(b"123456", (2, -3)),
        array(b"123456", (-2, -3)),
        array(b"123456", (2, 3.0)),
        array(b"123456", (1,) * 70 + (6,)),
        array(b"123456", [2, 3]),
        array(b"123456", (2, 3), "O"),
        array(b"123456", (2, 3), "i8"),
        array(b"123456", (2, 3), "u1", True),
        array("12345ш", (2, 3)),
        array([1, 2], (2,)),
        array(Call("encode", ("12", "rot13")), (2,)),
        array(Call("encode", ("12", "latin1")), ((1 << 2000), 0, 3)),
        Call("_reconstruct", ()),
        Call("dtype", ("u1",)),
    ],
)
def test_arrays_that_are_none(value: Any) -> None:
    with pytest.raises(ValueError, match=r"array|codec"):
        as_bytes_array(value)


def timed(content: bytes) -> tuple[float, int]:
    """Seconds and most memory that reading takes, whether it can be read or not."""
    tracemalloc.start()
    start = time.monotonic()
    try:
        load(content)
    except ValueError:
        pass
    finally:
        memory = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    return time.monotonic() - start, memory


ENCODE = b"c_codecs\nencode\nq\x02X\x06\x00\x00\x00latin1q\x03"
COLLIDING = b"".join(
    b"\x8a\x0a" + (k * ((1 << 61) - 1)).to_bytes(10, "little") + b"N" for k in range(1, 30_000)
)
NESTED = b"(" + b")" + b"\x85" * 150_000 + b"Nu."


@pytest.mark.parametrize(
    "content",
    [
        EMPTY + b"]" + b"\x85" * 150_000 + b"0",
        EMPTY + NESTED,
        EMPTY + b"(" + COLLIDING + b"u.",
        EMPTY + b"U\x01aN" * 200_000 + b"0",
        EMPTY + b"2" * 2_000_000,
        # Doubled with every step, if it were ever walked through.
        EMPTY + b"U\x01a)q\x01" + b"h\x01h\x01\x86q\x01" * 100_000 + b"s.",
        # The same text in many arrays.
        EMPTY
        + b"X\x40\x42\x0f\x00"
        + b"a" * 1_000_000
        + b"q\x01"
        + ENCODE
        + b"h\x02h\x01h\x03\x86R" * 20_000
        + b"0",
    ],
    ids=["deep", "deep key", "colliding keys", "wide", "steps", "doubling", "copies"],
)
def test_bombs_are_bounded(content: bytes) -> None:
    seconds, memory = timed(content)
    assert seconds < 20
    assert memory < 300 << 20


def test_the_number_of_steps_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pickled, "MOST_STEPS", 100)
    with pytest.raises(ValueError, match="more than 100 steps"):
        load(EMPTY + b"K\x01" * 101 + b".")
