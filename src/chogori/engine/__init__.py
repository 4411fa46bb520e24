"""The built-in engine: continuous batching over a paged latent cache, with prefix reuse and constrained decoding.

A `Completer`; never speaks HTTP. Read `engine`, `scheduler`, `prefix_cache`, then `forward`.
"""
