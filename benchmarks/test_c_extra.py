import pytest


@pytest.mark.c_extra
def test_cell(cell):
    cell.check()
