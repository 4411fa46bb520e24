"""Anthropic's API: messages, streamed or whole, token counts and models.

Reads Anthropic's JSON, writes Anthropic's; never decides how an answer comes about. Read `message_request`,
`conversation`, `message_answer`, then `messages_api`.
"""
