"""OpenAI's API: chat completions, completions, models, files and token counts.

Reads OpenAI's and Moonshot's JSON, writes theirs; never decides how an answer comes about. Read `chat_request`,
`chat_api`, then `chat_chunks`.
"""
