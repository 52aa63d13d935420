"""A stand-in for torchada, which lets code for ``torch.cuda`` run on MUSA; what SGLang needs."""

import torch
import torch_musa

for name in ("current_device", "get_device_capability", "get_device_properties", "mem_get_info"):
    setattr(torch.cuda, name, getattr(torch_musa, name))
torch.Tensor.is_cuda = property(lambda tensor: tensor.device.type == "musa")
