"""How the fused passes cut their work: chunks, units, live rows."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from grolang.compiler.fused import Head, pages, products
from grolang.compiler.fused.factored import pack, unit_slices
from grolang.compiler.fused.pages import LARGE, on_huge_pages
from grolang.compiler.fused.products import by_onednn, has_bf16_products, has_onednn, multiply, precision, spans
from grolang.compiler.fused.rows import IN_CACHE, compact, narrowed, row_blocks, taken
from grolang.compiler.fused.sweep import row_chunks, tiled


def test_compaction_moves_live_rows_to_the_front() -> None:
    for live in ("", "0", "1", "10", "01", "0110", "11110", "00001", "1010101", "0001101000110001"):
        mask = torch.tensor([one == "1" for one in live], dtype=torch.bool)
        tile = torch.arange(len(live) * 3.0).view(len(live), 3)
        order = compact(mask, moved := tile.clone())
        assert sorted(order.tolist()) == mask.nonzero().squeeze(1).tolist()
        assert torch.equal(moved[: len(order)], tile[order])


def test_chunks_are_even_and_within_the_limit() -> None:
    for count, most in [(0, 5), (1, 5), (5, 5), (6, 5), (23, 5), (7, 1), (3, 0)]:
        cut = spans(count, most)
        assert [i for one in cut for i in range(one.start, one.stop)] == list(range(count))
        sizes = [one.stop - one.start for one in cut]
        assert not sizes or (max(sizes) <= max(1, most) and max(sizes) - min(sizes) <= 1)


def test_a_chunk_that_converts_the_head_is_higher() -> None:
    for dtype, count in [(torch.float32, 11), (torch.bfloat16, 4), (torch.float16, 4)]:
        assert len(row_chunks(torch.empty(4096, 2, dtype=dtype), Head(torch.empty(64, 2, dtype=dtype)), None)) == count
    with torch.device("meta"):
        assert len(row_chunks(torch.empty(4096, 2), Head(torch.empty(64, 2)), None)) == 1


def test_row_work_goes_by_blocks_that_a_cache_holds() -> None:
    with torch.device("meta"):
        gpu = torch.empty(33, 128)
    assert [rows.stop - rows.start for rows in row_blocks(gpu, 33)] == [5] * 6 + [3]
    tile = torch.empty(64, 2**17)
    cut = row_blocks(tile, 61)
    assert [i for rows in cut for i in range(rows.start, rows.stop)] == list(range(61))
    assert (cut[0].stop - cut[0].start) * tile.shape[1] * 4 == IN_CACHE
    assert row_blocks(tile, 0) == [] and len(row_blocks(torch.empty(3, 2**20), 3)) == 3


def test_rows_of_whole_pages_stand_a_line_apart() -> None:
    for columns, stride in [(1023, 1023), (1024, 1040), (32768, 32784), (128256, 128256)]:
        assert tiled(torch.empty(0), 3, columns).stride() == (stride, 1)
    assert tiled(torch.empty(0, dtype=torch.float64), 3, 512).stride() == (520, 1)


def test_a_large_buffer_asks_for_huge_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    if not Path("/sys/kernel/mm/transparent_hugepage").exists():
        pytest.skip("this system has none")
    buffer = on_huge_pages(torch.empty(2 * LARGE, dtype=torch.uint8))
    assert "hg" in flags(buffer.data_ptr() + LARGE)
    monkeypatch.delattr(pages, "_libc")
    on_huge_pages(torch.empty(LARGE - 1, dtype=torch.uint8))


def flags(address: int) -> list[str]:
    """Of the mapping that holds an address."""
    inside = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        word, *rest = line.split()
        if not word.endswith(":"):
            begin, end = (int(one, 16) for one in word.split("-"))
            inside = begin <= address < end
        elif inside and word == "VmFlags:":
            return rest
    raise AssertionError("no mapping holds the address")


def test_a_default_chunk_holds_at_least_256_rows_of_a_large_vocabulary() -> None:
    for vocabulary in (32_000, 128_256, 262_144):
        with torch.device("meta"):
            head = Head(torch.empty(vocabulary, 8))
            cut = row_chunks(torch.empty(4096, 8), head, 256 * 2**20)
        assert min(one.stop - one.start for one in cut) >= 256


def test_units_are_packed_in_order_and_a_large_one_stands_alone() -> None:
    unit = torch.tensor([4] * 2 + [7] * 3 + [1] * 9 + [2] * 1 + [3] * 4)
    units = unit_slices(unit)
    assert [(u.start, u.stop) for u in units] == [(0, 2), (2, 5), (5, 14), (14, 15), (15, 19)]
    assert [(p.start, p.stop) for p in pack(units, 5)] == [(0, 5), (5, 14), (14, 19)]


def test_a_targets_own_error_is_taken_out_of_the_columns_that_hold_it() -> None:
    tile = torch.arange(12.0).view(3, 4) + 1
    assert taken(tile, torch.tensor([5, 3, 9]), 3).tolist() == [3, 5, 0]
    assert tile.tolist() == [[1, 2, 0, 4], [0, 6, 7, 8], [9, 10, 11, 12]]


def test_a_tile_is_narrowed_in_its_own_memory() -> None:
    for columns in (1, 37, 1024):
        tile = tiled(torch.empty(0), 9, columns).normal_()
        expected = tile.bfloat16()
        found = narrowed(tile[:7], torch.bfloat16)
        assert torch.equal(found, expected[:7]) and found.data_ptr() == tile.data_ptr()


def test_a_cpu_multiplies_bf16_where_it_has_units_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    if not has_onednn():
        pytest.skip("this torch has no oneDNN to ask")
    one = torch.ones(1, 1, dtype=torch.bfloat16)
    for units, fast in [(set(), False), ({"avx512_f"}, False), ({"avx512_bf16"}, True), ({"amx_bf16"}, True)]:
        monkeypatch.setattr(products, "cpu_units", lambda units=units: units)
        monkeypatch.setattr(products, "cpu_multiplies_bf16", products.cpu_multiplies_bf16.__wrapped__)
        assert precision(one, one).operands == (torch.bfloat16 if fast else torch.float32)
        assert precision(one.float(), one).operands == precision(one.half(), one.half()).operands == torch.float32
        monkeypatch.undo()


def test_onednn_takes_fp32_only_where_a_trial_shows_that_it_keeps_it(monkeypatch: pytest.MonkeyPatch) -> None:
    if not has_onednn():
        pytest.skip("this torch has no oneDNN to ask")
    tried = products.onednn_is_exact.__wrapped__
    for units in (set(), {"avx512_f"}, {"avx512_bf16", "amx_bf16"}, {"avx512_bf16", "amx_tile"}):
        monkeypatch.setattr(products, "cpu_units", lambda units=units: units)
        assert not tried()


def test_the_setting_that_asks_onednn_is_put_back() -> None:
    if not has_onednn():
        pytest.skip("this torch has no oneDNN to ask")
    setting = torch.backends.mkldnn.matmul
    before = setting.fp32_precision
    with pytest.raises(RuntimeError), by_onednn():
        assert setting.fp32_precision == "bf16"
        torch.ones(2, 3) @ torch.ones(2, 3)
    multiply(torch.empty(2, 2), torch.ones(2, 2), torch.ones(2, 2))
    multiply(torch.empty(2, 2), torch.ones(2, 2).bfloat16(), torch.ones(2, 2).bfloat16())
    assert setting.fp32_precision == before


def test_bf16_products_need_a_gpu_that_has_them(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = torch.device("cuda", 0)
    asked = has_bf16_products.__wrapped__
    assert not asked(torch.device("cpu")) and not asked(torch.device("mps"))
    for build, capability, expected in [("12.8", (7, 5), False), ("12.8", (8, 0), True), (None, (9, 4), False)]:
        monkeypatch.setattr(torch.version, "cuda", build)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _, capability=capability: capability)
        assert asked(gpu) is expected
