"""Models with FiLM in them, in every spelling, and how a converted one is held against the one as written."""
