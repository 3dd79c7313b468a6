"""Visual question answering on Sort-of-CLEVR (Santoro et al. 2017) with a FiLM network: see __main__.py."""
