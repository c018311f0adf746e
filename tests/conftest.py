"""One thread for all tests: several are slower at these sizes, and results must not depend on their number."""

import torch

torch.set_num_threads(1)
