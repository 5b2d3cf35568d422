import pytest


@pytest.fixture(autouse=True)
def blank_figures():
    """Draw figures here: these tests look at them."""
