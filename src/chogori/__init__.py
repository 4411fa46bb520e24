"""Chogori: the Kimi K2 system, whole and open.

Read the packages in the order data flows: `chat` (tokenizer), `data`, `model`, `optim`, `train`, `recipes`, `cli`.
"""

__version__ = "0.1.0"
