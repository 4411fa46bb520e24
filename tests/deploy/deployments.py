"""Deployments by what people type, for the tests of engines and forms."""

from __future__ import annotations

from chogori.cli.deploy import make_deployment, parse
from chogori.deploy.formats.files import Deployment

OFFICIAL = ("kimi-k2", "--gpus", "16", "--gpu", "h200")
"""The smallest deployment of Kimi K2's guide."""


def typed(*arguments: str) -> Deployment:
    """What `chogori deploy` makes of `arguments`."""
    return make_deployment(parse(arguments))


def official(*arguments: str) -> Deployment:
    """Kimi K2 on 16 × H200."""
    return typed(*OFFICIAL, *arguments)
