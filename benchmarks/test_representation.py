import pytest


@pytest.mark.representation
def test_representation(representation):
    representation.check()
