"""Rows of measurements as people and machines read them."""
