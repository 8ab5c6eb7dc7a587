import pytest


@pytest.mark.token_drop
def test_cell(cell):
    cell.check()
