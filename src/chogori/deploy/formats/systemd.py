"""systemd units that run the shell scripts: one for each node, one for the router and the gateway."""

from __future__ import annotations

from chogori.deploy.formats.files import Deployment, File
from chogori.deploy.formats.shell import known_values, shell_files, variables

FOLDER = "/opt/chogori"
"""Where the scripts are expected."""
ENVIRONMENT_FILE = "/etc/chogori/deployment.env"


def systemd_files(deployment: Deployment) -> list[File]:
    """The scripts, a unit for each, and the file with what the scripts must be told."""
    scripts = shell_files(deployment)
    names = [file.name.removesuffix(".sh") for file in scripts]
    units = [File(name=f"chogori-{name}.service", content=_unit(deployment, name, names)) for name in names]
    return [*scripts, *units, _environment(deployment, scripts)]


def _unit(deployment: Deployment, name: str, names: list[str]) -> str:
    # The gateway and the router wait for what is on their own node; other nodes are reached when they answer.
    after = " ".join(["network-online.target", *(["chogori-node-0.service"] if _follows(name, names) else [])])
    return f"""[Unit]
Description={deployment.title.replace("%", "%%")}: {name}
Wants=network-online.target
After={after}

[Service]
User=chogori
EnvironmentFile=-{ENVIRONMENT_FILE}
ExecStart=/bin/bash {FOLDER}/{name}.sh
Restart=always
RestartSec=10
TimeoutStopSec=120
KillMode=mixed
LimitMEMLOCK=infinity
LimitNOFILE=1048576

[Install]
WantedBy=multi-user.target
"""


def _follows(name: str, names: list[str]) -> bool:
    return name == "gateway" and "node-0" in names


def _environment(deployment: Deployment, scripts: list[File]) -> File:
    """PATH and HF_TOKEN are asked for as comments: systemd gives services neither a login shell's."""
    needed = sorted({name for file in scripts for name in variables(file.content)})
    known = known_values(deployment)
    lines = [
        f"# Copy to {ENVIRONMENT_FILE} on every node, and the scripts to {FOLDER}.",
        "# PATH must find the engine and chogori.",
        "PATH=/opt/chogori/venv/bin:/usr/local/bin:/usr/bin:/bin",
        "#HF_TOKEN=",
        *(f"{name}={known[name]}" if name in known else f"#{name}=" for name in needed),
    ]
    return File(name="deployment.env", content="\n".join(lines) + "\n")
