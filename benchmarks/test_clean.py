import pytest


@pytest.mark.clean
def test_cell(cell):
    cell.check()
