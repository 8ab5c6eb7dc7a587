import pytest


@pytest.mark.claims
def test_claim(claim):
    claim.check()
