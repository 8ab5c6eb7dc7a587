import pytest


@pytest.mark.geometry
def test_cell(cell):
    cell.check()
