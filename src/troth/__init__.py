"""Troth."""
