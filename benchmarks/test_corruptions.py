import pytest


@pytest.mark.imagenet_c
def test_cell(cell):
    cell.check()
