import pytest


@pytest.mark.blur
def test_cell(cell):
    cell.check()
