import pytest


@pytest.mark.cbar
def test_cell(cell):
    cell.check()
