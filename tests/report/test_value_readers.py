import pytest

from interpretable_training.report.value_readers import (
    list_of,
    mapping_of,
    optional,
    read_count,
    read_flag,
    read_integer,
    read_number,
    read_text,
)


@pytest.mark.parametrize(
    ("read", "value"),
    [
        (read_text, "a"),
        (read_flag, False),
        (read_number, float("inf")),
        (read_number, 3),
        (read_integer, -(2**53)),
        (read_count, 0),
        (optional(read_text), None),
        (list_of(read_text), ["a", "b"]),
        (mapping_of(read_number, read_count), {1: 0.5}),
    ],
)
def test_readers_return_values_of_their_type(read, value):
    assert read(value) == value


@pytest.mark.parametrize(
    ("read", "value"),
    [
        *((read, None) for read in (read_text, read_flag, read_number, read_integer, read_count)),
        (read_text, b"a"),
        (read_flag, 1),
        (read_number, True),
        (read_number, "1"),
        (read_integer, 1.0),
        (read_integer, True),
        (read_integer, 2**53 + 1),
        (read_count, -1),
        (optional(read_text), 1),
        (list_of(read_text), "ab"),
        (list_of(read_text), ["a", 1]),
        (mapping_of(read_text), {1: "a"}),
        (mapping_of(read_text), {"a": 1}),
        (mapping_of(read_text), ["a"]),
    ],
)
def test_readers_refuse_values_of_other_types(read, value):
    with pytest.raises((TypeError, ValueError)):
        read(value)
