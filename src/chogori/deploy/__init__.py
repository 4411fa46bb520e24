"""Deployment of a model behind vLLM, SGLang, KTransformers or TensorRT-LLM: sizing, commands, files and starting them.

Owns the memory plan, the layouts, the engines' command lines and the files for shells, systemd, Kubernetes and Slurm;
never loads torch and never talks to a model. Read `plan`, then `memory`, `engines.vllm`, `formats.shell`, `launch`.
"""
