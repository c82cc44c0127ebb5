"""Contract tests for the layout of log records: plain data goes in, and comes out as it went in."""

from __future__ import annotations

import datetime
import decimal
import enum
import pathlib
import pickle
import uuid
from typing import Any, NoReturn

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fdpool.errors import RemoteProtocolError
from fdpool.protocol.records import MAX_RECORD_BYTES, decode_record, encode_record

PLAIN = {"name": "a.b", "levelno": 20, "levelname": "INFO", "msg": "message", "created": 1.5}
VALUES = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(),
        st.floats(allow_nan=False),
        st.text(),
        st.binary(),
        st.datetimes(timezones=st.sampled_from([None, datetime.UTC])),
        st.timedeltas(),
        st.decimals(allow_nan=False),
        st.uuids(),
    ),
    lambda inner: st.one_of(st.lists(inner), st.dictionaries(st.text(), inner), st.tuples(inner, inner)),
    max_leaves=8,
)


def there_and_back(**changes: Any) -> dict[str, Any]:
    body = encode_record(PLAIN | changes)
    assert len(body) <= MAX_RECORD_BYTES
    return decode_record(body)


@given(VALUES)
def test_plain_data_comes_out_as_it_went_in(value: object) -> None:
    assert there_and_back(extra=value) == PLAIN | {"extra": value}


def test_a_path_is_plain_data() -> None:
    assert there_and_back(extra=pathlib.Path("/a/b"))["extra"] == pathlib.Path("/a/b")


class Level(enum.IntEnum):
    LOUD = 35


class Name(str):
    __slots__ = ()

    def __str__(self) -> NoReturn:
        raise AssertionError("nobody asked for this")


class Opaque:
    def __repr__(self) -> str:
        return "<opaque>"

    def __reduce__(self) -> NoReturn:
        raise AssertionError("not pickled at all")


class Sulky:
    def __repr__(self) -> NoReturn:
        raise ValueError("no")


@pytest.mark.parametrize(
    ("value", "arrives"),
    [
        (Opaque(), "<opaque>"),
        ([Opaque(), 1], "[<opaque>, 1]"),
        (Level.LOUD, 35),
        (Name("text"), "text"),
        (type("Real", (float,), {})(2.5), 2.5),
        (len, "<built-in function len>"),
        (int, "<class 'int'>"),
        (Sulky(), "<a Sulky whose repr() raised ValueError>"),
        (2 + 3j, "(2+3j)"),
    ],
)
def test_what_is_not_plain_becomes_it(value: object, arrives: object) -> None:
    arrived = there_and_back(extra=value)["extra"]
    assert arrived == arrives
    assert type(arrived) is type(arrives)


def test_what_every_record_has_is_made_what_it_should_be() -> None:
    arrived = there_and_back(levelno=True, created=3, name=Level.LOUD, levelname=None, msg=Opaque())
    assert arrived == PLAIN | {"levelno": 1, "created": 3.0, "name": "35", "levelname": "None", "msg": "<opaque>"}
    assert type(arrived["levelno"]) is int
    unnamed: Any = {5: "an attribute without a name"}
    assert decode_record(encode_record(PLAIN | unnamed)) == PLAIN | {"5": "an attribute without a name"}
    with pytest.raises(TypeError):
        encode_record(PLAIN | {"created": None})


def test_a_value_that_refers_to_itself_arrives_as_it_is() -> None:
    loop: list[Any] = []
    loop.append(loop)
    arrived = there_and_back(extra=loop)["extra"]
    assert arrived[0] is arrived


def test_a_value_nested_too_deeply_is_told_in_words() -> None:
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    assert there_and_back(extra=deep)["extra"] == "<a list whose repr() raised RecursionError>"


@given(
    st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=3),
    st.integers(60_000, 70_000),
    st.integers(0, 70_000),
)
def test_what_is_too_long_is_cut_and_the_missing_characters_are_counted(text: str, times: int, other: int) -> None:
    message = text * times
    arrived = there_and_back(msg=message, exc_text="t" * other)
    for before, after in ((message, arrived["msg"]), ("t" * other, arrived["exc_text"])):
        if after != before:
            kept, _, note = after.rpartition(" [… ")
            assert before.startswith(kept)
            assert note == f"{len(before) - len(kept)} more characters are missing: a record travels in 65526 bytes]"
    assert arrived | {"msg": 0, "exc_text": 0} == PLAIN | {"msg": 0, "exc_text": 0}


def test_only_the_longest_text_is_cut_and_by_no_more_than_it_must() -> None:
    arrived = there_and_back(msg="m" * 40_000, exc_text="t" * 50_000)
    assert arrived["msg"] == "m" * 40_000
    assert len(arrived["exc_text"]) > 25_000


def test_an_attribute_of_another_kind_that_is_too_long_is_cut_as_text() -> None:
    arrived = there_and_back(extra=list(range(100_000)))
    assert arrived["extra"].startswith("[0, 1, 2,")
    assert "more characters are missing" in arrived["extra"]


def test_an_int_that_python_does_not_write_down_costs_no_record() -> None:
    number = 10**5000
    assert there_and_back(number=number)["number"] == number
    arrived = there_and_back(msg="m" * 100_000, number=number)
    assert arrived["msg"].startswith("mmm")
    assert arrived["number"] in (number, "<an int of too many digits>")


def test_attributes_too_many_are_left_out_and_counted() -> None:
    arrived = there_and_back(**{f"attribute {number}": number for number in range(10_000)})
    note = "message [… 10000 attributes of this record are missing: there is no room for them]"
    assert arrived == PLAIN | {"msg": note}


def test_lone_surrogates_arrive_and_can_be_cut() -> None:
    assert there_and_back(msg="\ud800x")["msg"] == "\ud800x"
    assert "more characters are missing" in there_and_back(msg="\ud800x" * 50_000)["msg"]


class Bomb:
    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return exec, ("raise SystemExit",)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"garbage",
        pickle.dumps([1]),
        pickle.dumps({}),
        pickle.dumps({**PLAIN, "levelno": "high"}),
        pickle.dumps({**PLAIN, 5: 5}),
        pickle.dumps({**PLAIN, "extra": Bomb()}),
        pickle.dumps({**PLAIN, "extra": Level.LOUD}),
        encode_record(PLAIN)[:-3],
        pickle.dumps(datetime.date(2000, 1, 1)).replace(b"\x07\xd0", b"\xff\xff"),
    ],
)
def test_what_is_no_record_is_refused_and_runs_nothing(body: bytes) -> None:
    with pytest.raises(RemoteProtocolError, match="a log record") as caught:
        decode_record(memoryview(body))
    assert caught.value.data == body


@given(st.binary(max_size=60), st.integers(0, 100))
def test_damage_is_refused_or_gives_a_record(noise: bytes, at: int) -> None:
    whole = encode_record(PLAIN | {"extra": [decimal.Decimal(1), uuid.UUID(int=1)]})
    try:
        fields = decode_record(whole[:at] + noise + whole[at + len(noise) :])
    except RemoteProtocolError:
        return
    assert type(fields["msg"]) is str
