"""Cuts documents into token sequences."""
