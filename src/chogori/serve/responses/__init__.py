"""OpenAI's Responses API: text and function tools, without stored responses.

Reads and writes its JSON; never decides how an answer comes about, and keeps nothing of it. Read `input_items`,
`response_request`, `output_items`, `response_answer`, then `api`.
"""
