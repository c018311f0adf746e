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
