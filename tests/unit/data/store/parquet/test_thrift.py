import pytest

from pretraining.data.store.parquet.thrift import array, boolean, i8, i32, i64, string, struct, varint

VARINTS = {0: "00", 1: "01", 127: "7f", 128: "8001", 50_399: "df8903", 1 << 35: "808080808001"}


@pytest.mark.parametrize(("number", "encoded"), VARINTS.items())
def test_varint(number: int, encoded: str) -> None:
    assert varint(number).hex() == encoded


@pytest.mark.parametrize(
    ("number", "encoded"), [(0, "00"), (-1, "01"), (1, "02"), (-2, "03"), (64, "8001"), (-65, "8101")]
)
def test_signs_are_in_the_lowest_bit(number: int, encoded: str) -> None:
    assert i32(number).content.hex() == i64(number).content.hex() == encoded


def test_a_structure_has_the_steps_between_its_fields_and_ends_with_zero() -> None:
    value = struct(
        {1: i32(-3), 3: i64(5), 4: string("é"), 10: struct({2: boolean(False), 3: boolean(True), 4: i8(-1)})}
    )
    assert value.content.hex() == "1505" + "260a" + "1802c3a9" + "6c" + "22" + "11" + "13ff" + "00" + "00"


def test_lists_have_their_size_in_the_header_or_after_it() -> None:
    assert array([i32(1)] * 14).content.hex() == "e5" + "02" * 14
    assert array([i32(1)] * 15).content.hex() == "f50f" + "02" * 15
    assert array([string("a")] * 200).content.hex() == "f8c801" + "0161" * 200
