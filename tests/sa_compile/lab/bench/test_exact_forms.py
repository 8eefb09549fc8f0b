"""``bench exact-forms``: its spellings are one attention, and its table says what is dearer."""

import pytest
import torch

from sa_compile.lab.bench.exact_forms import SPELLINGS, Result, _operands, print_table


@pytest.mark.parametrize("spelling", [name for name in SPELLINGS if "mask" in name or name == "written out"])
def test_masked_spellings_agree(spelling):
    operands = _operands(5, 40, (4, 16, 2), torch.float32)
    expected = SPELLINGS["sdpa, mask, grouped heads"](*operands)
    torch.testing.assert_close(SPELLINGS[spelling](*operands), expected)


def test_a_row_for_each_case_and_a_column_for_each_number_of_keys(capsys):
    results = [
        Result("written out", "float32", 2, 4, keys, "exact: unchanged", 3.0, 2.0) for keys in (64, 128)
    ]
    print_table(results)
    header, _, row = capsys.readouterr().out.splitlines()
    assert header.split()[-2:] == ["64", "128"]
    assert row.split()[-2:] == ["1.50", "1.50"]
