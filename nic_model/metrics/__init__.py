"""Scores of captions against references: tokens, counts of each segment that add up, scores of counts. No torch."""
