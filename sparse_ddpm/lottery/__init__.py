"""Iterative magnitude pruning: from images to a ticket. Needs torch."""
