"""Context caching: beginnings of conversations that are stored under an id or a tag, and paid for by the minute.

Owns the cache objects, their tags, their life and what they cost; keeps prefixes through whatever implements
`prefix_pinner`, so never loads torch. Read `context_cache`, `context_caching`, then `caching_api` and `cache_use`.
"""
