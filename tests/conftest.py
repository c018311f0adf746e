"""What holds for all tests."""

import logging

import pytest
import torch

torch.set_num_threads(1)  # several are slower at these sizes, and results must not depend on their number


@pytest.fixture(autouse=True)
def no_handlers_left():
    """Programs log to the stderr of their test, which is closed after it."""
    yield
    for handler in logging.getLogger().handlers[:]:
        if type(handler) is logging.StreamHandler:
            logging.getLogger().removeHandler(handler)


def pytest_addoption(parser):
    parser.addoption("--fuzz_examples", type=int, default=40, help="files of each kind that tests/fuzz makes up")


@pytest.fixture
def fuzz_examples(request) -> int:
    """How many files of each kind the fuzz suite makes up."""
    return request.config.getoption("--fuzz_examples")
