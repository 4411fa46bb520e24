"""The Kimi K2 model: multi-head latent attention and a mixture of experts, on one device, in plain PyTorch.

Owns sizes, layers, the latent cache and weights in and out; never knows training or text. Read `config`, then
`attention`, `moe`, `transformer`.
"""

from typing import TYPE_CHECKING

from chogori._lazy import lazy_exports
from chogori.model.config import K2Config, YarnConfig

if TYPE_CHECKING:
    from chogori.model.cache import LatentCache
    from chogori.model.generation import generate
    from chogori.model.transformer import K2Model

__all__ = ["K2Config", "K2Model", "LatentCache", "YarnConfig", "generate"]

__getattr__, __dir__ = lazy_exports(
    __name__, {"K2Model": "transformer", "LatentCache": "cache", "generate": "generation"}
)
