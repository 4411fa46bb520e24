"""In front of a model that runs elsewhere: any OpenAI-compatible address as the server's backend.

Owns the backend by URL, the repair of its tool calls and the choice of tools; never knows an API of ours, never loads
torch. Read `http_backend`, then `repairing`, `call_repair` and `tool_ranking`.
"""
