"""The diffusion process: schedule, losses, guidance, windows, sampling. Callables and tensors, no network class."""
