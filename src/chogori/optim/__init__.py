"""MuonClip for any PyTorch model: Newton–Schulz, Muon, AdamW for the rest, and QK-Clip; and learning-rate schedules.

Never knows our model: QK-Clip reaches attention through the adapters of `attention_adapters`. Read `config`, then
`newton_schulz`, `muon`, `observation`, `qk_clip` and `muon_clip`.
"""

from typing import TYPE_CHECKING

from chogori._lazy import lazy_exports
from chogori.optim.config import MuonClipConfig, NewtonSchulzConfig, QKClipConfig
from chogori.optim.schedules import WSD, Cosine

if TYPE_CHECKING:
    from chogori.optim.attention_adapters import AttentionProbe
    from chogori.optim.muon_clip import MuonClip, build_optimizer
    from chogori.optim.newton_schulz import orthogonalize
    from chogori.optim.observation import AttentionLogitMonitor
    from chogori.optim.qk_clip import ClipReport, QKClip

__all__ = [
    "WSD",
    "AttentionLogitMonitor",
    "AttentionProbe",
    "ClipReport",
    "Cosine",
    "MuonClip",
    "MuonClipConfig",
    "NewtonSchulzConfig",
    "QKClip",
    "QKClipConfig",
    "build_optimizer",
    "orthogonalize",
]

__getattr__, __dir__ = lazy_exports(
    __name__,
    {
        "AttentionLogitMonitor": "observation",
        "AttentionProbe": "attention_adapters",
        "ClipReport": "qk_clip",
        "MuonClip": "muon_clip",
        "QKClip": "qk_clip",
        "build_optimizer": "muon_clip",
        "orthogonalize": "newton_schulz",
    },
)
