"""One thread for each test process: the models are tiny, and more threads would slow them and other processes."""

import torch

torch.set_num_threads(1)
