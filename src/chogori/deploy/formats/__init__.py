"""The files of a deployment: scripts for shells, units for systemd, objects for Kubernetes, a job for Slurm.

Each module turns one fleet into files and knows nothing of the engines. Read `shell` first: systemd runs its scripts.
"""
