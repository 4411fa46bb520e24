"""The engines that can be deployed: what each needs, and the exact command of every node.

Each module holds one engine, as an `Engine` and a function that writes its commands. Read `vllm` first.
"""
