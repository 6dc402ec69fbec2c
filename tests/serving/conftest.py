"""One server for all tests of the routes: they change nothing that another one sees."""

import pytest

from support.served import Offline, Served, write_adapters


@pytest.fixture(scope="session")
def adapters(tmp_path_factory):
    return write_adapters(tmp_path_factory.mktemp("adapters"))


@pytest.fixture(scope="session")
def served(adapters):
    with Served(adapters).running() as server:
        yield server


@pytest.fixture(scope="session")
def offline(adapters):
    return Offline(adapters)
