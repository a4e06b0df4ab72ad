"""Tap orders: what is copied from whom to whom."""
