import pytest

import autoprune


@pytest.mark.parametrize("name", sorted(set(autoprune.__all__) - {"__version__"}))
def test_public_names_are_found_where_they_live(name):
    assert getattr(autoprune, name).__name__ == name
    assert name in dir(autoprune)


def test_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'serch'"):
        autoprune.serch  # noqa: B018 - the access is the test
