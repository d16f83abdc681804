"""Sparse autoencoders on embeddings of physiological signals: concepts, their stability, ageing and grounding."""
