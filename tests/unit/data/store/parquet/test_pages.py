import numpy as np
import pyarrow as pa
import pytest

from pretraining.data.store.parquet.pages import PAGE_BYTES, PageMaker

REQUIRED = pa.field("element", pa.uint16(), nullable=False)


def blocks(num_blocks: int, block_length: int) -> tuple[pa.Field, pa.Array]:
    field = pa.field("input_ids", pa.list_(REQUIRED, block_length), nullable=False)
    ids = np.arange(num_blocks * block_length).astype(np.uint16)
    return field, pa.FixedSizeListArray.from_arrays(pa.array(ids), type=field.type)


def test_each_byte_of_ids_is_a_stream_and_zeros_widen_them() -> None:
    field = pa.field("ids", pa.list_(REQUIRED, 2), nullable=False)
    ids = pa.array(np.array([0x0102, 0xFFFE], np.uint16))
    ((num_levels, page),) = PageMaker(field).pages(pa.FixedSizeListArray.from_arrays(ids, type=field.type))
    assert num_levels == 2
    assert page[-8:].tobytes().hex() == "02fe" + "01ff" + "0000" + "0000"


@pytest.mark.parametrize(
    ("number", "encoded"),
    [(pa.int64(), "0807060504030201" + "feffffffffffffff"), (pa.uint16(), "08070000" + "feff0000")],
    ids=str,
)
def test_other_numbers_are_plain(number: pa.DataType, encoded: str) -> None:
    numbers = np.array([0x0102030405060708, -2], np.int64).astype(str(number))
    ((num_levels, page),) = PageMaker(pa.field("n", number, nullable=False)).pages(pa.array(numbers))
    assert num_levels == 2
    assert page.tobytes().hex() == encoded


def test_levels_of_blocks_are_runs() -> None:
    field, column = blocks(2, 300)
    ((num_levels, page),) = PageMaker(field).pages(column)
    repetition = "0200" + "d60401"  # one 0, then 299 times 1
    definition = "b00901"  # 600 times 1
    assert num_levels == 600
    assert page[:21].tobytes().hex() == "0a000000" + 2 * repetition + "03000000" + definition


def test_levels_of_lists_are_packed_bits_and_an_empty_list_has_one() -> None:
    field = pa.field("starts", pa.list_(pa.uint32()))
    column = pa.ListArray.from_arrays(pa.array([0, 2, 2, 3], pa.int32()), pa.array([7, 8, 9], pa.uint32()))
    ((num_levels, page),) = PageMaker(field).pages(column)
    assert num_levels == 4
    # Repetition 0 1 0 0: one group of 8 bits. Definition 3 3 1 3, the first in the lowest bits: one of 16.
    assert page[:13].tobytes().hex() == "02000000" + "0302" + "03000000" + "03df00"


@pytest.mark.parametrize(("num_blocks", "block_length"), [(1, 1), (3, 4096), (129, 4096), (7, 300_000), (400_000, 1)])
def test_a_page_is_about_1_mb_of_whole_blocks(num_blocks: int, block_length: int) -> None:
    field, column = blocks(num_blocks, block_length)
    sizes = [num_levels for num_levels, _ in PageMaker(field).pages(column)]
    assert sum(sizes) == num_blocks * block_length
    assert [size % block_length for size in sizes] == [0] * len(sizes)
    assert max(sizes) <= max(PAGE_BYTES // 4, block_length)
    assert len(sizes) <= -(-num_blocks * block_length * 4 // PAGE_BYTES) + 1


def test_nulls_are_not_written() -> None:
    with pytest.raises(AssertionError, match="nulls"):
        list(PageMaker(pa.field("n", pa.int64())).pages(pa.array([1, None])))
