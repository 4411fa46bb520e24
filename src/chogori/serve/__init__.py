"""The HTTP server: OpenAI's and Anthropic's wire formats over any Completer.

Owns the two APIs, their errors, metrics and files; never loads torch and never knows which model answers. Read
`backend`, `app`, then `openai` and `anthropic`.
"""
