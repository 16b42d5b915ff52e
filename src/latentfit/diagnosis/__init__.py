"""Findings and the sentences that say them."""
