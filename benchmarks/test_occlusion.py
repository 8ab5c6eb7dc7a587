import pytest


@pytest.mark.occlusion
def test_cell(cell):
    cell.check()
