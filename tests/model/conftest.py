"""Tiny models: threads cost more than they bring, and workers would fight over cores."""

import torch

torch.set_num_threads(1)
