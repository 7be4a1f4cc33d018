import json

import pytest
import safetensors
from hypothesis import given, settings
from hypothesis import strategies as st

from polarax.loaders import CheckpointError
from polarax.loaders.formats.safetensors_header import Entry, header_length, parse_header

FILE = "folder/model.safetensors"
ITEM = {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}


def header_of(**tensors):
    return json.dumps(tensors).encode()


def parse(header: bytes, data_bytes: int | None = 24):
    size = None if data_bytes is None else 8 + len(header) + data_bytes
    return parse_header(header, FILE, size)


def changed(**fields):
    return header_of(w=ITEM | fields)


def test_entries_are_in_the_order_of_their_data():
    header = header_of(
        __metadata__={"format": "pt"},
        late={"dtype": "I8", "shape": [2], "data_offsets": [4, 6]},
        early={"dtype": "BF16", "shape": [2, 1], "data_offsets": [0, 4]},
    )
    start = 8 + len(header)
    assert parse(header, 6) == (
        Entry("early", "BF16", (2, 1), start, start + 4),
        Entry("late", "I8", (2,), start + 4, start + 6),
    )


@pytest.mark.parametrize(
    ("header", "problem"),
    [
        (b"", "does not begin with {"),
        (b" {}", "does not begin with {"),
        (b"[1]", "does not begin with {"),
        (b"{", "not valid JSON"),
        (b'{"w": }', "not valid JSON"),
        (b'{"\xff": 1}', "not valid JSON"),
        (b'{"w": NaN}', "NaN"),
        (b'{"\\ud800": {}}', "not valid JSON"),
        (b'{"__metadata__": {"a": "\\uDC00"}}', "not valid JSON"),
        (b'{"w": {"shape": ["\\udfff"]}}', "not valid JSON"),
        (b'{"w":' * 100_000, "not valid JSON|nested too deeply"),
        (b'{"w": ' + b"[" * 100_000, "not valid JSON|nested too deeply"),
        (b'{"w": ' + b"9" * 5000 + b"}", "not valid JSON"),
        (b'{"w": 1, "w": 2}', "duplicate key 'w'"),
        (b'{"v": 1, "w": 2, "u": {"x": 1, "w": 3, "x": 2}}', "duplicate key 'x'"),
        (header_of(__metadata__=[]), "__metadata__"),
        (header_of(__metadata__={"a": 1}), "__metadata__"),
        (header_of(w=[]), "'w': expected an object"),
        (header_of(w={"dtype": "F32", "shape": []}), "'w': data_offsets is missing"),
        (header_of(w={"dtype": "F32", "data_offsets": [0, 4]}), "'w': shape is missing"),
        (header_of(w={"shape": [], "data_offsets": [0, 4]}), "'w': dtype is missing"),
        (changed(dtype=32), "'w': dtype must be a string. Got 32"),
        (changed(dtype=None), "'w': dtype must be a string"),
        (changed(shape=6), "'w': shape must be"),
        (changed(shape=[2, -3]), r"'w': shape must be .* Got \[2, -3\]"),
        (changed(shape=[2, 3.0]), "'w': shape must be"),
        (changed(shape=[True, 6]), "'w': shape must be"),
        (changed(shape=["2", 3]), "'w': shape must be"),
        (changed(shape=[None, 3]), "'w': shape must be"),
        (changed(shape=[2**64]), "'w': shape must be"),
        (changed(shape=[1] * 65), "'w': shape must be at most 64"),
        (changed(shape=[2**40, 2**40]), "'w': shape .* is beyond any memory"),
        (changed(shape=[0, 2**62, 2**62], data_offsets=[0, 0]), "beyond any memory"),
        (changed(shape=[2, 2]), r"'w': F32 of shape \[2, 2\] takes 16 bytes, .* hold 24"),
        (changed(shape=[]), "'w': F32 of shape .* takes 4 bytes"),
        (changed(dtype="F4", shape=[47]), "'w': F4 of shape .* takes 23.5 bytes"),
        (changed(data_offsets=[0]), "'w': data_offsets must be two integers"),
        (changed(data_offsets=[0, 12, 24]), "'w': data_offsets must be two integers"),
        (changed(data_offsets=[-24, 0]), "'w': data_offsets must be two integers"),
        (changed(data_offsets=[0, 24.0]), "'w': data_offsets must be two integers"),
        (changed(data_offsets=[False, 24]), "'w': data_offsets must be two integers"),
        (changed(data_offsets="024"), "'w': data_offsets must be two integers"),
        (changed(data_offsets=[24, 0]), "'w': data_offsets run backwards"),
        (changed(data_offsets=[8, 32]), "tensor 'w' ends at byte .* truncated"),
        (header_of(w=ITEM, v=ITEM), "tensor '[vw]' .* overlaps '[vw]'"),
        (header_of(w=ITEM | {"shape": [2], "data_offsets": [4, 12]}), "'w' begins at .* expected"),
        (header_of(w=ITEM | {"shape": [2], "data_offsets": [0, 8]}), "16 bytes after 'w'"),
        (b"{}", "24 bytes after the header"),
    ],
)
def test_a_header_that_lies_is_refused(header, problem):
    with pytest.raises(CheckpointError, match=problem) as caught:
        parse(header)
    message = str(caught.value)
    assert message.startswith(FILE)
    assert "\n" not in message
    assert len(message) < 400


def test_the_last_eight_bytes_cut_off_are_noticed():
    with pytest.raises(CheckpointError, match=r"model.safetensors: tensor 'w' ends .* truncated"):
        parse(header_of(w=ITEM), 24 - 8)


def test_no_size_means_no_judgement_on_the_end_of_the_file():
    assert len(parse(header_of(w=ITEM), None)) == 1


def test_tensors_without_elements_are_legal():
    empty = {"dtype": "F32", "shape": [0, 7], "data_offsets": [24, 24]}
    assert [entry.name for entry in parse(header_of(w=ITEM, e=empty))] == ["w", "e"]


def test_an_unknown_dtype_is_listed():
    (entry,) = parse(changed(dtype="F3_NEW"))
    assert entry.dtype == "F3_NEW"


@pytest.mark.parametrize(
    ("prefix", "size", "problem"),
    [
        (b"", 0, "is empty"),
        (b"\1\0\0", 3, "only 3 bytes"),
        (b"version ", 133, "pointer of Git LFS"),
        ((100_000_001).to_bytes(8, "little"), None, "100000001 bytes long .limit 100000000"),
        (b"\xff" * 8, 1 << 50, "limit"),
        ((93).to_bytes(8, "little"), 100, "header ends at byte 101, the file at 100"),
    ],
)
def test_a_header_length_that_lies_is_refused(prefix, size, problem):
    with pytest.raises(CheckpointError, match=problem):
        header_length(prefix, FILE, size)


# The reference implementation is the judge of what is a safetensors file.
json_value = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 2**66) | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=5,
)
dtype_name = st.sampled_from(["F64", "F32", "BF16", "F8_E5M2", "I64", "U8", "BOOL", "F4", "C64"])
plausible = st.fixed_dictionaries(
    {
        "dtype": dtype_name,
        "shape": st.lists(st.integers(0, 4), max_size=3),
        "data_offsets": st.lists(st.sampled_from([0, 1, 2, 4, 8, 16]), min_size=2, max_size=2),
    }
)


@settings(max_examples=300)
@given(st.dictionaries(st.text(max_size=2), plausible, max_size=3), st.integers(0, 32))
def test_the_same_headers_are_accepted_as_by_the_reference(header, data_bytes):
    text = json.dumps(header).encode()
    file = len(text).to_bytes(8, "little") + text + bytes(data_bytes)
    try:
        expected = {name for name, _ in safetensors.deserialize(file)}
    except safetensors.SafetensorError:
        with pytest.raises(CheckpointError):
            parse(text, data_bytes)
    else:
        assert {entry.name for entry in parse(text, data_bytes)} == expected


@given(
    st.one_of(
        st.binary(max_size=60),
        json_value.map(lambda value: json.dumps(value).encode()),
        st.dictionaries(
            st.text(max_size=2),
            st.fixed_dictionaries({}, optional={"dtype": json_value, "shape": json_value, "data_offsets": json_value}),
        ).map(lambda value: json.dumps(value).encode()),
    ),
    st.none() | st.integers(0, 64),
)
def test_no_header_fails_in_any_other_way(header, data_bytes):
    try:
        entries = parse(header, data_bytes)
    except CheckpointError as error:
        assert "\n" not in str(error)
    else:
        assert all(0 <= entry.start <= entry.stop for entry in entries)
