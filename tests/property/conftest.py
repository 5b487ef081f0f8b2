"""Settings of Hypothesis: the same examples everywhere, and no deadline."""

from hypothesis import settings

settings.register_profile(
    "properties", derandomize=True, deadline=None, max_examples=40, database=None
)
settings.load_profile("properties")
