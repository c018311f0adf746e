"""Names of number types."""

import torch

from vexpress.devices import DTYPES, resolve_dtype
from vexpress.options import DTYPES as NAMES


def test_the_table_of_options_names_what_there_is():
    assert set(DTYPES) == set(NAMES)


def test_half_precision_is_the_default_on_cuda_alone():
    assert resolve_dtype(None, torch.device("cuda")) == torch.float16
    assert resolve_dtype(None, torch.device("cpu")) == torch.float32
    assert resolve_dtype("bf16", torch.device("cuda")) == torch.bfloat16
