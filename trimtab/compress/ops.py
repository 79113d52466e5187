"""Operations between layers, by what they do to a channel's values."""

from __future__ import annotations

import torch

aten = torch.ops.aten
RELUS = (aten.relu.default, aten.relu_.default)
LIMITED = (aten.hardtanh.default, aten.hardtanh_.default, aten.relu6.default)
ADDS = (aten.add.Tensor, aten.add_.Tensor)
MAX_POOLS = (aten.max_pool2d.default,)
AVERAGES = (aten.avg_pool2d.default, aten.adaptive_avg_pool2d.default)
